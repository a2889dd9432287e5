"""What a filter learns from: for each forward, how sure each position was and whether its token was the final one.

The reference text y is decoded one token a step. Then the same prompt is decoded again, and every position whose token agrees
with y is revealed at once ("extremely greedy parallel"); where a forward brings no other predictions than the one before, the
block gets y. That is also the ceiling for any rule that looks at the same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....errors import DataError, MethodError
from ....runs import progress, read_tensors
from ...adapter import MaskPredictor
from ...base import Commit, CommitRule, Step
from ...prompts import checked_prompts
from ...sampler import Sampler
from ..proposing import Gumbel
from ..rules import FixedBlocks, TopK

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from ...sampler import Sampler

__all__ = ["Oracle", "Records", "collect"]

_FORMAT = "unwrite learn2pd records"


@dataclass(frozen=True, eq=False)
class Oracle(CommitRule):
    """Reveals what agrees with answers that are known already; it writes them exactly, in no more forwards than one a token.

    Args:
        answers: [batch, generated] ids, a row for each prompt of the call.
    """

    answers: Tensor

    def check(self, sampler: Sampler) -> None:
        """Refuses drawn tokens, and answers of another length."""
        if sampler.propose.random:
            raise MethodError("Oracle compares the likeliest tokens with the answers. Use temperature 0.")
        if self.answers.dim() != 2 or self.answers.shape[1] != sampler.gen_length:
            raise MethodError(
                f"Oracle: answers are {list(self.answers.shape)}; use one row a prompt of gen_length {sampler.gen_length}."
            )

    def commit(self, step: Step) -> Commit:
        if len(self.answers) != step.desk.batch:
            raise MethodError(f"Oracle: {len(self.answers)} answers for {step.desk.batch} prompts. Give one for each.")
        final = self.answers.to(step.rows.device)[step.rows].gather(1, step.columns - step.prompt[:, None])
        memory = step.memory(self)
        before = memory.get("predicted", step.masked.shape[1], fill=-1, dtype=torch.long, per_block=True)
        memory.put("predicted", step.proposed.clone())  # what is kept is written to later
        stuck = ((step.proposed == before) | ~step.inside).all(1)
        return Commit(step.masked & ((step.proposed == final) | stuck[:, None]), tokens=final)


@dataclass(frozen=True, eq=False)
class Records:
    """One record a forward and row.

    Args:
        confidence: [records, block] of the likeliest token at every position of the block, float32.
        right: [records, block] whether that token is the final one.
        masked: [records, block] whether the position was still to be written.
        prompt, block, step: [records] which prompt, which block of it, which forward within the block.
        source: what they were made with: model, mask_id, precision.
    """

    confidence: Tensor
    right: Tensor
    masked: Tensor
    prompt: Tensor
    block: Tensor
    step: Tensor
    source: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.confidence)

    @property
    def size(self) -> int:
        """Positions of a block."""
        return int(self.confidence.shape[1])

    def forwards_a_block(self) -> float:
        """Mean forwards that the oracle took for a block."""
        return len(self) / len(torch.stack([self.prompt, self.block]).unique(dim=1).T)

    def at(self, chosen: Tensor) -> Records:
        """Those records: [records] bool, or indices."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in _TENSORS})

    def split(self, train: float = 0.8, validation: float = 0.1, seed: int = 0) -> tuple[Records, Records, Records]:
        """Training, validation and test records; all records of a prompt land in one of them.

        Raises:
            DataError: too few prompts for three parts.
        """
        prompts = self.prompt.unique()
        order = prompts[torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))]
        second = max(1, round(len(order) * validation))
        first = min(round(len(order) * train), len(order) - second - 1)
        if first < 1:
            raise DataError(
                f"the records are of {len(order)} prompts, too few to split three ways. Collect at least 3."
            )
        parts = order[:first], order[first : first + second], order[first + second :]
        splits = [self.at(torch.isin(self.prompt, part)) for part in parts]
        return splits[0], splits[1], splits[2]

    @staticmethod
    def joined(parts: Sequence[Records]) -> Records:
        """Records of several calls as one; their prompts stay apart.

        Raises:
            DataError: no parts, or parts of other block sizes, models, mask tokens or precisions.
        """
        if not parts:
            raise DataError("there are no records to join.")
        odd = next((part for part in parts if (part.size, part.source) != (parts[0].size, parts[0].source)), None)
        if odd is not None:
            raise DataError(
                f"records of blocks of {odd.size} from {dict(odd.source)} can't join those of {parts[0].size} from "
                f"{dict(parts[0].source)}. Collect them alike."
            )
        shifted, first = [], 0
        for part in parts:
            shifted.append(replace(part, prompt=part.prompt + first))
            first += int(part.prompt.max()) + 1 if len(part) else 0
        whole = {name: torch.cat([getattr(part, name) for part in shifted]) for name in _TENSORS}
        return replace(parts[0], **whole)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file."""
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        save_file(tensors, str(path), {"format": _FORMAT, **self.source})

    @staticmethod
    def load(path: str | Path) -> Records:
        """Reads what `save` wrote.

        Raises:
            DataError: the file holds no records.
        """
        tensors, source = read_tensors(path, "file of records", DataError, _KINDS)
        if source.pop("format", None) != _FORMAT:
            raise DataError(f"{path} holds no records of a filter's training. Make them with learn2pd.collect.")
        records = Records(**tensors, source=source)
        if {records.confidence.shape} != {one.shape for one in (records.right, records.masked)} or {len(records)} != {
            len(tensors[name]) for name in _TENSORS
        }:
            raise DataError(f"{path} is damaged: its tensors have different numbers of records. Collect them anew.")
        if len(records) and not (records.confidence.min() >= 0 and records.confidence.max() <= 1 + 1e-3):
            raise DataError(f"{path} is damaged: confidences lie outside 0..1. Collect them anew.")
        return records


_TENSORS = tuple(one.name for one in fields(Records) if one.name != "source")
_KINDS = {"confidence": ("float32", 2), "right": ("bool", 2), "masked": ("bool", 2)}
_KINDS |= {name: ("int64", 1) for name in _TENSORS if name not in _KINDS}


def collect(
    model: nn.Module | MaskPredictor,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Any = None,
    *,
    block: int = 32,
    gen_length: int = 256,
    batch_size: int = 8,
) -> Records:
    """Records from prompts without labels; the model is only read.

    Args:
        model: a mask predictor: a transformers model, or a `MaskPredictor`.
        tokenizer: for prompts that are text, and for its mask and end tokens.
        prompts: as `Sampler` takes them; in the paper 40 of each of 66 tasks.
        block: positions of a block, which the filter is made for; it divides gen_length.
        gen_length: positions of an answer.
        batch_size: prompts a call; does not change the records.

    Raises:
        MethodError, ModelError: as `Sampler`.
    """
    if batch_size < 1:
        raise MethodError(f"batch_size is {batch_size}; use at least 1.")
    predictor = MaskPredictor.of(model, tokenizer)
    rows = checked_prompts(prompts, predictor, gen_length, tokenizer)
    one_by_one = Sampler(gen_length=gen_length, blocks=FixedBlocks(block), commit=TopK(), propose=Gumbel())
    recorder = _Recorder()
    for first in progress(range(0, len(rows), batch_size), "collecting records"):
        some = rows[first : first + batch_size]
        sequences = one_by_one(predictor, None, some).sequences
        answers = [sequences[row, len(prompt) : len(prompt) + gen_length] for row, prompt in enumerate(some)]
        recorder.first = first
        replace(one_by_one, commit=Oracle(torch.stack(answers)), watch=recorder)(predictor, None, some)
    return recorder.records(source_of(predictor))


class _Recorder:
    """A `watch` over the oracle's steps. first: number of the call's first prompt."""

    def __init__(self) -> None:
        self.first = 0
        self.steps: list[tuple[Tensor, ...]] = []

    def __call__(self, step: Step) -> None:
        place = (step.start - step.prompt) // step.masked.shape[1]
        # Wherever the prediction is right the canvas holds it by now, elsewhere another token or still the mask.
        right = step.proposed == step.tokens
        columns = (step.confidence.float(), right, step.masked, step.rows + self.first, place, step.in_block)
        self.steps.append(tuple(one.cpu() for one in columns))

    def records(self, source: Mapping[str, str]) -> Records:
        columns = (torch.cat(parts) for parts in zip(*self.steps, strict=True))
        return Records(**dict(zip(_TENSORS, columns, strict=True)), source=source)


def source_of(predictor: MaskPredictor) -> dict[str, str]:
    """What a filter's numbers depend on."""
    config = getattr(predictor.model, "config", None)
    name = getattr(config, "_name_or_path", "") or type(predictor.model).__name__
    weight = next(iter(predictor.model.parameters()), None) if hasattr(predictor.model, "parameters") else None
    precision = str(weight.dtype).removeprefix("torch.") if weight is not None else "float32"
    return {"model": str(name), "mask_id": str(predictor.mask_id), "precision": precision}
