"""Prophet: stop when the answer stands out, and write everything that is left at once (arXiv 2508.19982).

The answer is often settled long before its tokens are revealed. After each forward the two largest logits are compared over
the positions where the answer will stand; the bar falls as decoding goes on:

    gap = mean over the region of  l_(1) - l_(2)        stop at forward n if gap >= bar(n / steps):  7.5, 5.0, 2.5

Bars are in units of raw logits, as found for LLaDA-8B and Dream-7B; `calibrated_bars` finds those of another model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...errors import DataError, MethodError, unknown
from ..base import Step, Stop, Wide
from ..vocabulary import top_token
from .proposing import is_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..sampler import Sampler

__all__ = [
    "Convergence",
    "Prophet",
    "ProphetLog",
    "anchors",
    "answer_convergence",
    "calibrated_bars",
    "token_convergence",
]

Region = Callable[[Step], Tensor]  # [rows, generated] bool
_REGIONS = ("after_anchor", "last_n_before_eos", "all_masked")


@dataclass(frozen=True)
class Prophet(Stop):
    """Fills a row with the clean arg max of a forward whose gap reaches the bar; that forward reveals nothing besides.

    What is looked at must have logits: with a prefix cache that is always so for positions not before the block, with a dual
    cache only at a block's first forward and in the last block.

    Args:
        bars: gaps that suffice early, in the middle and late; at inf never, at -inf at once.
        cuts: shares of the steps at which the middle and the late bar begin.
        schedule: "steps" for three bars, "line" for one that goes evenly from the first to the last: 7.5 - 5 p.
        region: positions that are looked at, revealed ones too. "after_anchor": `count` from `start` on;
            "last_n_before_eos": `count` before the first end token now predicted (experimental: it moves);
            "all_masked": every position still masked, for answers without a place, a rule of its own, near SchED's; or a
            function of the step that gives them, [rows, generated].
        start: generated position at which the answer begins, at least 0; None for two after the last position that
            the caller fixed, as the official evaluation has it. Without either a row never stops early.
        count: positions, at least 1.
    """

    bars: tuple[float, float, float] = (7.5, 5.0, 2.5)
    cuts: tuple[float, float] = (0.33, 0.67)
    schedule: Literal["steps", "line"] = "steps"
    region: Literal["after_anchor", "last_n_before_eos", "all_masked"] | Region = "after_anchor"
    start: int | None = None
    count: int = 5

    def __post_init__(self) -> None:
        if len(self.bars) != 3 or any(bar != bar for bar in self.bars):
            raise MethodError(f"Prophet: bars are {self.bars}; use three numbers: early, middle, late.")
        if len(self.cuts) != 2 or not 0 <= self.cuts[0] <= self.cuts[1]:
            raise MethodError(f"Prophet: cuts are {self.cuts}; use two shares of the steps, the first no larger.")
        if self.schedule not in ("steps", "line"):
            raise MethodError(unknown("schedule", self.schedule, ("steps", "line")))
        if not callable(self.region) and self.region not in _REGIONS:
            raise MethodError(unknown("region", self.region, _REGIONS))
        if self.start is not None and self.start < 0:
            raise MethodError(f"Prophet: start is {self.start}, before the answer's first position. Use 0 or more.")
        if self.count < 1:
            raise MethodError(f"Prophet: count is {self.count}; use at least 1.")
        early, middle, late = self.bars
        if not early >= middle >= late:
            warnings.warn(
                f"Prophet: bars {self.bars} rise; an answer usually needs less of a gap later on.", stacklevel=3
            )

    def check(self, sampler: Sampler) -> None:
        """Refuses fewer steps than blocks, each of which takes one."""
        block = sampler.blocks.block_size(sampler.gen_length)
        if sampler.steps is None or block is None:
            return
        count = -(-sampler.gen_length // block)
        if sampler.steps < count:
            raise MethodError(f"Prophet: {sampler.steps} steps for {count} blocks. Use at least one step a block.")

    def stop(self, step: Step) -> Tensor:
        """[rows] whether the gap reaches the bar."""
        bar = self.bar(step)
        return (self.gap(step) >= bar) & (bar < torch.inf)

    def bar(self, step: Step) -> Tensor:
        """[rows] what the gap must reach at this forward, float64."""
        early, middle, late = self.bars
        progress = (step.number + 1).double() / step.total
        if self.schedule == "line" and early != late:
            return early + (late - early) * progress.clamp(max=1)
        first, second = self.cuts if self.schedule == "steps" else (0.0, 0.0)
        bar = torch.full_like(progress, late)
        return bar.masked_fill(progress < second, middle).masked_fill(progress < first, early)

    def gap(self, step: Step) -> Tensor:
        """[rows] mean distance of the two largest clean logits over the region, in float64; NaN where the region is empty or
        not all of it has logits."""
        wide = _canvas(step)
        places, chosen = self._region(step, wide)
        logits, known = wide.clean, wide.known
        if places is not None:
            logits = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
            known = known.gather(1, places)
        gaps = torch.zeros(chosen.shape, dtype=torch.float64, device=logits.device)
        if logits.device.type == "cpu":  # positions that don't count need no sorting
            two = logits[chosen].topk(2, dim=-1).values.double()  # [positions, 2]
            gaps[chosen] = two[:, 0] - two[:, 1]
        else:
            two = logits.topk(2, dim=-1).values.double()  # [rows, n, 2]
            gaps = (two[..., 0] - two[..., 1]).masked_fill(~chosen, 0.0)
        usable = chosen.any(1) & (known | ~chosen).all(1)
        return (gaps.sum(1) / chosen.sum(1)).masked_fill(~usable, torch.nan)

    def _region(self, step: Step, wide: Wide) -> tuple[Tensor | None, Tensor]:
        """Generated positions [rows, n], None for all of them in order, and which of them count [rows, n]."""
        written = (step.length - step.prompt)[:, None]
        if callable(self.region):
            return None, self.region(step) & (torch.arange(step.size, device=written.device) < written)
        if self.region == "all_masked":
            return None, wide.masked
        if self.region == "after_anchor":
            first = self._start(step, wide)
        else:
            # Where there is none, or it is the first position, the region is empty.
            first = is_end(guesses(step), step.eos_ids).long().argmax(1) - self.count
        places = first[:, None] + torch.arange(self.count, device=first.device)
        chosen = (places >= 0) & (places < written)
        return places.clamp(0, step.size - 1), chosen

    def _start(self, step: Step, wide: Wide) -> Tensor:
        """[rows] where the answer begins; found at the call's first step, when what isn't masked was given."""
        memory = step.memory(self)
        if "start" in memory.inner.tensors:
            return memory.get("start", dtype=torch.long)
        if self.start is not None:
            start = torch.full_like(step.start, self.start)
        else:
            places = torch.arange(step.size, device=step.start.device)
            last = torch.where(wide.masked, -1, places).amax(1)
            start = torch.where(last < 0, step.size, last + 2)
        memory.get("start", dtype=torch.long)
        memory.put("start", start)
        outside = int((start >= step.size).sum())
        if outside:
            warnings.warn(
                f"Prophet: {outside} of {len(start)} rows have no answer region within their {step.size} positions and never stop "
                "early. Give `fixed` an anchor further left, or Prophet a start.",
                stacklevel=2,
            )
        return start


def guesses(step: Step) -> Tensor:
    """[rows, generated] what would be written if this forward were the last; the mask token where it has no logits."""
    wide = _canvas(step)
    likeliest = top_token(wide.clean).masked_fill(~wide.known, step.mask_id)
    return torch.where(wide.masked, likeliest, step.canvas.gather(1, wide.columns))


def _canvas(step: Step) -> Wide:
    if step.wide is None:
        raise MethodError(
            "no part of this sampler reads the canvas. Add stop=Prophet(...), with infinite bars if need be."
        )
    return step.wide


def anchors(text: str, tokenizer: PreTrainedTokenizerBase, gen_length: int) -> dict[int, int]:
    """Fixed positions from text such as "200:The|201:answer|202:is": what `Sampler` takes as `fixed`.

    Args:
        text: positions and words, joined by "|". A word is read with a space before it, and may be several tokens.
        tokenizer: of the model.
        gen_length: positions of the answer.

    Raises:
        MethodError: an entry that can't be read or has no tokens, a position outside the answer, words that overlap.
    """
    tokens: dict[int, int] = {}
    for entry in text.split("|"):
        place, colon, word = entry.partition(":")
        if not colon or not place.strip().isdecimal() or not word.strip():
            raise MethodError(f"{entry!r} is no anchor. Write position:word, joined by '|'.")
        ids = tokenizer.encode(" " + word.strip(), add_special_tokens=False)
        if not ids:
            raise MethodError(f"the tokenizer makes nothing of {word.strip()!r}. Use another word.")
        for at, token in enumerate(ids, int(place)):
            if at >= gen_length:
                raise MethodError(
                    f"{entry!r} reaches position {at}, and the answer has {gen_length}. Move it to the left."
                )
            if at in tokens:
                raise MethodError(f"{entry!r} overlaps the word before: both take position {at}. Leave more room.")
            tokens[at] = int(token)
    return tokens


class ProphetLog:
    """A `watch` that keeps each forward's gap and guesses: what the analysis below reads.

    Args:
        prophet: whose gap is kept; the sampler's stop, whose bars may be infinite.

    Attributes:
        gaps: {row: the gap of each forward}, NaN where there is none.
        guesses: {row: of each forward the ids [generated] it would have written}.
    """

    def __init__(self, prophet: Prophet) -> None:
        self.prophet = prophet
        self.gaps: dict[int, list[float]] = {}
        self.guesses: dict[int, list[list[int]]] = {}

    def __call__(self, step: Step) -> None:
        rows = zip(step.rows.tolist(), self.prophet.gap(step).tolist(), guesses(step).tolist(), strict=True)
        for row, gap, ids in rows:
            self.gaps.setdefault(row, []).append(gap)
            self.guesses.setdefault(row, []).append(ids)


@dataclass(frozen=True)
class Convergence:
    """When an answer was right, as a share of the forwards; None for never.

    Args:
        first: the first time.
        stable: from here to the end.
    """

    first: float | None
    stable: float | None

    def by(self, share: float, stable: bool = True) -> bool:
        """Whether it was so after this share of the forwards."""
        point = self.stable if stable else self.first
        return point is not None and point <= share


def answer_convergence(
    history: Sequence[Sequence[int]], extract: Callable[[Sequence[int]], Any], gold: Any
) -> Convergence:
    """How early a text's answer was known.

    Args:
        history: ids [generated] that each forward would have written.
        extract: the answer in ids.
        gold: the right one.
    """
    right = [extract(ids) == gold for ids in history]
    first = next((n for n, one in enumerate(right, 1) if one), None)
    wrong = max((n for n, one in enumerate(right, 1) if not one), default=0)
    count = len(right)
    return Convergence(None if first is None else first / count, None if wrong == count else (wrong + 1) / count)


def token_convergence(history: Sequence[Sequence[int]]) -> list[float]:
    """[generated] for each position the share of the forwards from which its guess is the last one's."""
    ids = torch.tensor(history)  # [forwards, generated]
    forwards = torch.arange(1, len(ids) + 1)[:, None]
    changed = torch.where(ids != ids[-1], forwards, 0).amax(0)
    return ((changed + 1) / len(ids)).tolist()


def calibrated_bars(
    gaps: Sequence[Sequence[float]],
    histories: Sequence[Sequence[Sequence[int]]],
    extract: Callable[[Sequence[int]], Any],
    quantiles: tuple[float, float, float] = (0.95, 0.75, 0.5),
) -> tuple[float, float, float]:
    """Bars for a model whose logits have another scale: quantiles of the gaps from where the final answer no longer changes.

    Args:
        gaps: of each text the gap of each forward; NaN is left out.
        histories: of each text the ids that each forward would have written.
        extract: the answer in ids.
        quantiles: for the early, the middle and the late bar.

    Raises:
        DataError: no text has a gap after its answer settled.
    """
    settled: list[float] = []
    for row, history in zip(gaps, histories, strict=True):
        stable = answer_convergence(history, extract, extract(history[-1])).stable
        since = round((stable or 1.0) * len(history)) - 1
        settled += [gap for gap in row[since:] if gap == gap]
    if not settled:
        raise DataError("no forward has a gap after its answer settled. Record with a region that has logits.")
    early, middle, late = torch.tensor(settled).double().quantile(torch.tensor(quantiles).double()).tolist()
    return early, middle, late
