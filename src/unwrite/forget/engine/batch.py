"""One forward pass for all parts of a batch (forget, alternate, retain), and a view of each part.

The rows are stacked and the vocabulary head runs only at the positions a part needs: where a label is
predicted or, for a KL retain term, wherever the mask chosen by the method says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from ...data.text.encoding import IGNORE
from ...errors import MethodError
from ...scoring import head_at, prediction_mask, sum_rows, token_nll

PARTS = ("forget", "alternate", "retain")
KLMask = Literal["labels", "attention", "all"]


@dataclass
class BatchPart:
    """The rows of one kind in a batch, after the forward pass.

    Args:
        index: stable row numbers, [rows].
        input_ids, attention_mask, labels: [rows, length].
        where: positions at which logits were taken, [rows, length].
        marks: tokens that the rows mark, [rows, length]; None where no row of the batch marks any.
        logits: [positions, vocab], row-major in `where`; None if the method doesn't read it.
        head_input: what went into the vocabulary head there, [positions, d]; None if the model has no such head.
        hidden: block outputs asked for, {layer: [rows, length, d]}.
        reference: summed answer nll of the model before unlearning, [rows], or None.
        reference_logits: its logits at `where`, [positions, vocab], or None.
        reference_hidden: as `hidden`, of the model before unlearning.
    """

    index: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    where: Tensor
    logits: Tensor | None = None
    head_input: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    reference: Tensor | None = None
    reference_logits: Tensor | None = None
    reference_hidden: dict[int, Tensor] = field(default_factory=dict)
    marks: Tensor | None = None

    @cached_property
    def marked(self) -> Tensor:
        """Which label tokens are marked, [positions], as `token_nll`; none where no row marks any."""
        marks = torch.zeros_like(self.where) if self.marks is None else self.marks
        return marks[:, 1:][self.where[:, :-1]]

    @cached_property
    def targets(self) -> Tensor:
        """The label each position of `where` predicts, [positions]; only where labels are what was asked for."""
        targets = self.labels[:, 1:][self.where[:, :-1]]
        if self.where[:, -1].any() or (targets == IGNORE).any():
            raise MethodError("this part's logits were taken at every position, so it has no labels to score")
        return targets

    @cached_property
    def token_nll(self) -> Tensor:
        """Nats of each label token, [positions]."""
        if self.logits is None:
            raise MethodError("this part was run without logits; add 'nll' or 'logits' to the method's `reads`")
        return token_nll(self.logits, self.targets)

    @cached_property
    def nll(self) -> Tensor:
        """Answer nll summed over each row's label tokens, [rows], in nats."""
        return sum_rows(self.token_nll, self.where)

    @cached_property
    def tokens(self) -> Tensor:
        """Predicted label tokens of each row, [rows]; at least 1."""
        return prediction_mask(self.labels).sum(1).clamp(min=1)


PartT = TypeVar("PartT")


@dataclass
class PairedBatch(Generic[PartT]):
    """What `Objective.loss` sees; a part that the phase's stream doesn't bring is None.

    Its parts are `Part`s of text, or `ImagePart`s, which have the same face.
    """

    forget: PartT | None = None
    alternate: PartT | None = None
    retain: PartT | None = None

    def __getitem__(self, name: str) -> PartT:
        part: PartT | None = getattr(self, name)
        if part is None:
            raise MethodError(f"this batch has no {name} rows")
        return part

    def present(self) -> Iterator[tuple[str, PartT]]:
        """(name, part) of the parts there are."""
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                yield name, part


def positions(labels: Tensor, attention_mask: Tensor, mask: KLMask | None) -> Tensor:
    """Where a part's logits are needed, [rows, length]; None means where a label is predicted."""
    if mask == "attention":
        return attention_mask.bool()
    if mask == "all":
        return torch.ones_like(labels, dtype=torch.bool)
    return prediction_mask(labels)


def make_parts(tensors: Mapping[str, Mapping[str, Tensor]], retain_mask: KLMask | None) -> PairedBatch[BatchPart]:
    """The parts of a collated batch, before any forward pass."""
    return PairedBatch(
        **{
            name: BatchPart(
                index=part["index"],
                input_ids=part["input_ids"],
                attention_mask=part["attention_mask"],
                labels=part["labels"],
                where=positions(part["labels"], part["attention_mask"], retain_mask if name == "retain" else None),
                marks=part.get("marked"),
            )
            for name, part in tensors.items()
        }
    )


class _EnoughSeen(Exception):
    """Raised inside the forward pass when the last block needed has run."""


@contextlib.contextmanager
def _watch(blocks: list[nn.Module], layers: tuple[int, ...], stop: bool) -> Iterator[dict[int, Tensor]]:
    """Collects block outputs [rows, length, d]; with `stop`, ends the pass after the last of them."""
    seen: dict[int, Tensor] = {}
    handles = []
    for layer in layers:

        def hook(_module: nn.Module, _inputs: object, output: Any, layer: int = layer) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output
            if stop and layer == max(layers):
                raise _EnoughSeen

        handles.append(blocks[layer].register_forward_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def run(
    model: nn.Module,
    batch: PairedBatch[BatchPart],
    *,
    layers: tuple[int, ...] = (),
    blocks: list[nn.Module] | None = None,
    logits: bool,
    to_end: bool = False,
) -> PairedBatch[BatchPart]:
    """One forward pass over all parts stacked; fills `logits` and `hidden` of each part.

    Args:
        model: the model, possibly wrapped for data parallelism.
        layers, blocks: block numbers whose outputs are wanted, and all the model's blocks.
        logits: whether logits are wanted; without them the pass ends after the last layer asked for.
        to_end: runs the whole pass even so, as a sharded model needs.
    """
    parts = list(batch.present())
    length = max(part.input_ids.shape[1] for _, part in parts)
    ids = torch.cat([_widen(part.input_ids, length) for _, part in parts])
    mask = torch.cat([_widen(part.attention_mask, length) for _, part in parts])
    where = torch.cat([_widen(part.where, length) for _, part in parts])
    inner = getattr(model, "module", model)
    early = not logits and not to_end and inner is model  # a data-parallel wrapper must see its whole forward pass
    output = None
    with (
        head_at(inner, where) as tap,
        _watch(blocks or [], layers, early) as seen,
        contextlib.suppress(_EnoughSeen),
    ):
        output = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if logits and output is not None and output.dim() == 3:
        output = output[where] if tap.hidden is None else output.flatten(0, 1)
    start, row = 0, 0
    for _, part in parts:
        rows, width = part.input_ids.shape
        count = int(part.where.sum())
        if logits and output is not None:
            part.logits = output[start : start + count]
            part.head_input = None if tap.hidden is None else tap.hidden[start : start + count]
        part.hidden = {layer: value[row : row + rows, :width] for layer, value in seen.items()}
        start, row = start + count, row + rows
    return batch


def _widen(tensor: Tensor, length: int) -> Tensor:
    """Right-pads [rows, l] with zeros to [rows, length]; the mask, padded alike, hides what was added."""
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]))
