"""Any samplers on any tasks: how right they are, against how many tokens they write a step.

    sweep(model, {"confidence": Sampler(commit=TopK(), steps=8, ..), ..}, ["letters_n6/shuffle"], ListTokens()).curve()

Each sample is written in as many positions as it needs; a sampler's `steps` stay the share of the positions that they are of its
own `gen_length`. In infill the cells of a list are written and the rest of it is given (arXiv 2510.04767, section 4.3).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ...data.text.templates import bounded_template
from ...errors import MethodError
from ...runs import progress
from ..adapter import MaskPredictor
from ..parts.proposing import Confidence, Gumbel, LeftToRight, Margin, NegativeEntropy, RandomOrder
from ..parts.rules import Factor, FixedBlocks, Threshold, TopK
from ..sampler import Sampler
from .generators import MASK_WORD
from .ideal import Frame
from .metrics import score
from .summary import decode_order, oracle
from .tasks import TASKS, TaskSample, load

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

RULES = {
    "random": RandomOrder(), "left to right": LeftToRight(), "confidence": Confidence(), "margin": Margin(),
    "entropy": NegativeEntropy(),
}  # fmt: skip
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FACTORS = (0.7, 1.0, 1.3, 1.6, 1.9)


class Tokens(Protocol):
    """How samples become ids and back: `ListTokens`, `TextTokens`."""

    def frame(self, sample: TaskSample) -> Frame: ...

    def text(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class TextTokens:
    """The ids of a tokenizer, for models that read text.

    Args:
        tokenizer: with a chat template, or the messages are put one under the other.
        infill: give the list and write its items alone, which must be one token each.
        mask_id: None for the tokenizer's own.
    """

    tokenizer: PreTrainedTokenizerBase
    infill: bool = False
    mask_id: int | None = None

    def frame(self, sample: TaskSample) -> Frame:
        """Prompt, positions, and what is given of them.

        Raises:
            MethodError: a task without a list, items of several tokens, or no mask token, for infill.
        """
        tokenizer = self.tokenizer
        if getattr(tokenizer, "chat_template", None):
            with bounded_template(tokenizer.chat_template):
                text = tokenizer.apply_chat_template(list(sample.messages), add_generation_prompt=True, tokenize=False)
        else:
            text = "\n".join(message["content"] for message in sample.messages) + "\n"
        prompt = self._ids(text)
        if not self.infill:
            return Frame(prompt, TASKS[sample.task].tokens)
        if sample.skeleton is None:
            raise MethodError(f"{sample.task} has no list to fill in. Leave infill off for it.")
        word = sample.inputs.get("word")
        for item in (*sample.items, *([word] if word else [])):
            if len(self._ids(item)) != 1:
                raise MethodError(
                    f"{item!r} is {len(self._ids(item))} tokens, and a cell of an infilled list is one. Use the letters tasks."
                )
        mask = self.mask_id if self.mask_id is not None else getattr(tokenizer, "mask_token_id", None)
        if mask is None:
            raise MethodError("the tokenizer has no mask token. Pass TextTokens(tokenizer, mask_id=...).")
        ids: list[int] = []
        cells = []
        for number, piece in enumerate(sample.skeleton.split(MASK_WORD)):
            if number:
                cells.append(len(ids))
                ids.append(mask)
            ids += self._ids(piece)
        fixed = {place: token for place, token in enumerate(ids) if place not in set(cells)}
        return Frame(prompt, len(ids), fixed)

    def text(self, ids: Sequence[int]) -> str:
        """What they say."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class SweepRow:
    """One sampler on one task.

    Args:
        task, sampler: their names.
        samples: how many.
        loose, strict: percent right.
        tokens_per_step: positions written in a forward.
        nfe: forwards of an answer, on average.
        kendall, spearman: how much it was written from left to right, on average; NaN where all came at once.
        kendall_answer, spearman_answer: the same without end tokens and what follows them.
    """

    task: str
    sampler: str
    samples: int
    loose: float
    strict: float
    tokens_per_step: float
    nfe: float
    kendall: float
    spearman: float
    kendall_answer: float
    spearman_answer: float


@dataclass(frozen=True)
class SweepPoint:
    """One sampler on the curve: means over tasks."""

    sampler: str
    tokens_per_step: float
    score: float


@dataclass
class Sweep:
    """What came out.

    Args:
        rows: in the order of tasks and samplers.
        right, steps: {(task, sampler): [samples]} loosely right or not; forwards.
    """

    rows: list[SweepRow] = field(default_factory=list)
    right: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    steps: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def curve(
        self, samplers: Iterable[str] | None = None, task: str | None = None, strict: bool = False
    ) -> list[SweepPoint]:
        """From few to many tokens a step. samplers, task: None for all."""
        chosen = None if samplers is None else set(samplers)
        groups: dict[str, list[SweepRow]] = defaultdict(list)
        for row in self.rows:
            if (chosen is None or row.sampler in chosen) and task in (None, row.task):
                groups[row.sampler].append(row)
        points = [
            SweepPoint(
                name,
                sum(row.tokens_per_step for row in rows) / len(rows),
                sum(row.strict if strict else row.loose for row in rows) / len(rows),
            )
            for name, rows in groups.items()
        ]
        return sorted(points, key=lambda point: (point.tokens_per_step, point.sampler))

    def oracle(self, samplers: Sequence[str], task: str) -> tuple[float, float]:
        """Percent right and forwards of an answer if each sample had the best of these samplers, such as thresholds."""
        keys = [(task, name) for name in samplers]
        missing = next((key for key in keys if key not in self.right), None)
        if not keys or missing is not None:
            raise MethodError(f"{missing or task} was not swept. Name a task and samplers of this sweep.")
        best, steps = oracle(
            torch.stack([self.right[key] for key in keys]), torch.stack([self.steps[key] for key in keys])
        )
        return 100 * best, steps

    def records(self) -> list[dict[str, Any]]:
        """The rows as plain dicts."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        wide = max((len(row.sampler) for row in self.rows), default=0)
        lines = [f"{'':{wide}}  tokens/step  forwards  loose  strict"]
        last = None
        for row in self.rows:
            if row.task != last:
                lines.append(row.task)
                last = row.task
            lines.append(
                f"{row.sampler:{wide}}  {row.tokens_per_step:11.2f}  {row.nfe:8.1f}  {row.loose:5.1f}  {row.strict:6.1f}"
            )
        return "\n".join(lines)


def sweep(
    model: nn.Module | MaskPredictor,
    samplers: Mapping[str, Sampler],
    tasks: Sequence[str] | Mapping[str, Sequence[TaskSample]],
    tokens: Tokens,
    *,
    samples: int | None = None,
    batch_size: int = 64,
) -> Sweep:
    """Every sampler on every task.

    Args:
        model: a mask predictor, see `Sampler`.
        samplers: by name; `paper_samplers` has the benchmark's.
        tasks: names, or {name: samples}.
        tokens: `ListTokens` for the ideal model and small ones, `TextTokens` for those that read text.
        samples: of each task, see `load`.
        batch_size: rows at a time. Each batch draws with a seed of its own.

    Raises:
        MethodError: no samplers or tasks, samples that cannot be written so; before the first forward.
    """
    if not samplers or not tasks or batch_size < 1:
        raise MethodError(
            f"{len(samplers)} samplers, {len(tasks)} tasks, batch_size {batch_size}. Give at least one of each."
        )
    predictor = MaskPredictor.of(model, getattr(tokens, "tokenizer", None))
    loaded = tasks if isinstance(tasks, Mapping) else {name: load(name, samples=samples) for name in tasks}
    framed = {name: [(sample, tokens.frame(sample)) for sample in some] for name, some in loaded.items()}
    empty = next((name for name, some in framed.items() if not some), None)
    if empty is not None:
        raise MethodError(f"{empty} has no samples. Give it some, or leave it out.")
    for task, some in framed.items():
        for length, masks in {_size(frame) for _, frame in some}:
            for name, sampler in samplers.items():
                try:
                    _fitted(sampler, length, masks, sampler.seed)
                except MethodError as error:
                    raise MethodError(f"{name} cannot write {task}, {masks} of {length} positions: {error}") from None
    result = Sweep()
    pairs = [(task, name) for task in framed for name in samplers]
    for task, name in progress(pairs, "sweep"):
        row, right, steps = _measured(predictor, task, name, samplers[name], framed[task], tokens, batch_size)
        result.rows.append(row)
        result.right[task, name], result.steps[task, name] = right, steps
    return result


def _measured(
    predictor: MaskPredictor,
    task: str,
    name: str,
    sampler: Sampler,
    framed: Sequence[tuple[TaskSample, Frame]],
    tokens: Tokens,
    batch_size: int,
) -> tuple[SweepRow, Tensor, Tensor]:
    """One sampler on one task: its row, and for each sample whether it is right and its forwards."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)  # rows of one batch have the same length and masks
    for at, (_, frame) in enumerate(framed):
        alike[_size(frame)].append(at)
    batches = [
        (size, places[first : first + batch_size])
        for size, places in alike.items()
        for first in range(0, len(places), batch_size)
    ]
    loose, strict, steps, written = (torch.zeros(len(framed), dtype=torch.float64) for _ in range(4))
    orders: dict[str, list[float]] = defaultdict(list)
    for number, ((length, masks), places) in enumerate(batches):
        fitted = _fitted(sampler, length, masks, sampler.seed + number)
        frames = [framed[at][1] for at in places]
        out = fitted(predictor, None, [frame.prompt for frame in frames], fixed=[frame.fixed for frame in frames])
        order = out.trace.order.cpu()
        inside = torch.arange(length) < torch.tensor([len(answer) for answer in out.answers])[:, None]
        for suffix, those in (("", None), ("_answer", inside)):
            for kind, values in decode_order(order, those).items():
                orders[kind + suffix] += values.tolist()
        steps[places], written[places] = out.nfe.double(), (order >= 0).sum(1).double()
        for at, answer in zip(places, out.answers, strict=True):
            text = tokens.text(answer)
            loose[at], strict[at] = score(framed[at][0], text), score(framed[at][0], text, strict=True)
    means = {kind: _mean(values) for kind, values in orders.items()}
    speed = float(written.sum() / steps.sum())
    percent = 100 * float(loose.mean()), 100 * float(strict.mean())
    return SweepRow(task, name, len(framed), *percent, speed, float(steps.mean()), **means), loose, steps


def _size(frame: Frame) -> tuple[int, int]:
    """Positions, and masks among them."""
    return frame.length, frame.length - len(frame.fixed)


def _fitted(sampler: Sampler, length: int, masks: int, seed: int) -> Sampler:
    """The sampler for answers of this length with this many masks in them."""
    steps = None if sampler.steps is None else max(1, math.ceil(masks * sampler.steps / sampler.gen_length - 1e-9))
    return replace(sampler, gen_length=length, steps=steps, seed=seed)


def _mean(values: Sequence[float]) -> float:
    real = [value for value in values if not math.isnan(value)]
    return sum(real) / len(real) if real else math.nan


def paper_samplers(length: int = 32, temperature: float = 0.0) -> dict[str, Sampler]:
    """The benchmark's grid: every rule with 1, 2, 4, .. tokens a step in blocks of as many or more, thresholds and factors.

    Args:
        length: positions of an answer, a power of two: 32 for the waiting line, 64 for the rest.
        temperature: 0, and 1 for infill.
    """
    if length < 1 or length & (length - 1):
        raise MethodError(f"length is {length}; the grid halves it, so use a power of two.")
    sizes = [1 << power for power in range(length.bit_length())]
    grid = {}
    for block in sizes:
        common = Sampler(gen_length=length, blocks=FixedBlocks(block), propose=Gumbel(temperature))
        for rule, order in RULES.items():
            for k in sizes:
                if k <= block and (rule != "left to right" or block == length):  # blocks change nothing there
                    counted = replace(common, steps=length // k, score=order, commit=TopK())
                    grid[f"{rule} k={k} block={block}"] = counted
        for threshold in THRESHOLDS:
            grid[f"threshold {threshold} block={block}"] = replace(common, commit=Threshold(threshold))
        for factor in FACTORS:
            grid[f"factor {factor} block={block}"] = replace(common, commit=Factor(factor))
    return grid
