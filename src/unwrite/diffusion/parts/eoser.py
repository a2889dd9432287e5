"""EOSER and ASS: decoding in one block without the end-token trap, in log2(L) forwards (arXiv 2509.23924).

Early on, a mask predictor trained on padded answers is surest of end tokens; revealed by confidence they fill the canvas and
the answer stays empty. EOSER ranks them lower, less so with every step. ASS, ascending step size, reveals few tokens while
little is known and many once most is:

    c_i <- c_i (g_min + (g_max - g_min) t_s)  where x0_i ends the text,   t_s = s / (S - 1)  or  (2^(s+1) - 1) / 2^S
    n_s = 2^s, all that is left in the last of S = floor(log2 L) steps
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ...errors import MethodError, unknown
from ..base import Blocks, Quota, Ranking, Score, Step
from .proposing import Confidence, is_end

if TYPE_CHECKING:
    from ..sampler import Sampler

__all__ = ["Ascending", "AscendingBlocks", "EOSReject", "ascending_sizes", "ascending_steps"]

SCHEDULES: dict[str, float] = {"linear": 0.4, "ascending": 0.01}  # and the paper's g_min


@dataclass(frozen=True)
class EOSReject(Score):
    """Makes the model less sure of end tokens, early more than late. Steps count over the whole answer, so blocks after the
    first begin where the one before stopped.

    Args:
        inner: the score, a probability.
        schedule: "linear" in the steps, or "ascending" with the share of tokens that `Ascending` has revealed.
        low: the factor that it begins with (g_min), 0 to 1; None for the paper's, .4 for linear and .01 for ascending.
        high: the one that it ends with (g_max), from `low` to 1; ascending comes near it.
        ends: ids that are ranked lower; None for the first of the model's end tokens, the one that pads answers.
    """

    inner: Score = Confidence()
    schedule: Literal["linear", "ascending"] = "linear"
    low: float | None = None
    high: float = 1.0
    ends: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise MethodError(f"EOSReject: {unknown('schedule', self.schedule, SCHEDULES)}")
        if not 0 <= self.floor <= 1:
            raise MethodError(f"EOSReject: low is {self.low}; use 0 to 1.")
        if not self.floor <= self.high <= 1:
            raise MethodError(f"EOSReject: high is {self.high}; use low, {self.floor}, to 1.")
        if self.ends is not None and not self.ends:
            raise MethodError("EOSReject: ends is empty. Name an id, or use None for the model's own.")

    @property
    def floor(self) -> float:
        """g_min."""
        return SCHEDULES[self.schedule] if self.low is None else self.low

    @property
    def ranks_by(self) -> Ranking:  # type: ignore[override]
        return self.inner.ranks_by

    def check(self, sampler: Sampler) -> None:
        """Refuses a score that a factor below 1 does not lower."""
        if self.inner.ranks_by != "probability":
            raise MethodError(
                f"EOSReject scales probabilities, and {type(self.inner).__name__} gives none. Use EOSReject(Confidence())."
            )
        self.inner.check(sampler)

    def score(self, step: Step) -> Tensor:
        """[rows, width] in [0, 1]."""
        ends = step.eos_ids[:1] if self.ends is None else self.ends
        if not ends:
            raise MethodError(
                "EOSReject: the model names no end token. Pass ends=(id,), or MaskPredictor(end_ids=...)."
            )
        scores = self.inner.score(step)
        return torch.where(is_end(step.proposed, ends), scores * self.factor(step)[:, None], scores)

    def factor(self, step: Step) -> Tensor:
        """[rows] float64"""
        if step.total <= 1:
            return torch.full(step.number.shape, self.high, dtype=torch.float64, device=step.number.device)
        number = step.number.double().clamp(max=step.total - 1)
        if self.schedule == "linear":
            share = number / (step.total - 1)
        else:  # (2^(s+1) - 1) / 2^S without its large powers
            share = torch.exp2(number + 1 - step.total) - 2.0**-step.total
        return self.floor + (self.high - self.floor) * share


@dataclass(frozen=True)
class Ascending(Quota):
    """1, 2, 4, 8, ... positions a step, and in the last step all that are left."""

    def check(self, sampler: Sampler) -> None:
        """Refuses lengths, steps and parts that the counts do not fit."""
        size, steps, blocks = sampler.gen_length, ascending_steps(sampler.gen_length), sampler.blocks
        if sampler.steps != steps:
            raise MethodError(
                f"Ascending: steps is {sampler.steps}; gen_length {size} takes {steps}. Set steps={steps}."
            )
        if not sampler.commit.counts:
            raise MethodError(
                f"Ascending says how many to reveal, and {type(sampler.commit).__name__} does not ask. Use TopK()."
            )
        if blocks.block_size(size) != size and not blocks.grows_with_quota:
            raise MethodError(
                f"Ascending counts over the whole answer, and {blocks} cuts it. Use FixedBlocks(None) or AscendingBlocks."
            )

    def count(self, step: Step) -> Tensor:
        """[rows]"""
        last = step.number >= step.total - 1
        return torch.where(last, step.masked.sum(1), 2 ** step.number.clamp(max=62))


@dataclass(frozen=True)
class AscendingBlocks(Blocks):
    """Blocks that grow with `Ascending`: the first takes several steps, every later one a single step.

    Args:
        number: of blocks, 1 to floor(log2 gen_length).
    """

    number: int = 1
    grows_with_quota: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.number < 1:
            raise MethodError(f"AscendingBlocks: number is {self.number}; use at least 1.")

    def check(self, sampler: Sampler) -> None:
        """Refuses more blocks than steps."""
        steps = ascending_steps(sampler.gen_length)
        if self.number > steps:
            raise MethodError(
                f"AscendingBlocks: number is {self.number}, and gen_length {sampler.gen_length} takes {steps} steps. Use at "
                f"most {steps}."
            )

    @property
    def default(self) -> int:
        return 1  # given tokens are passed over one by one: a block ends where it ends, wherever it begins

    def reach(self, size: int) -> int:
        return max(ascending_sizes(size, self.number))

    def lengths(self, step: Step) -> Tensor:
        """[rows]"""
        ends = torch.tensor(list(accumulate(ascending_sizes(step.size, self.number))), device=step.start.device)
        done = step.start - step.prompt
        return ends[torch.searchsorted(ends, done, right=True)] - done


def ascending_steps(size: int) -> int:
    """floor(log2 size), the steps that `size` positions take.

    Raises:
        MethodError: size below 2.
    """
    if size < 2:
        raise MethodError(f"gen_length is {size}; ascending steps need at least 2.")
    return size.bit_length() - 1


def ascending_sizes(size: int, number: int) -> tuple[int, ...]:
    """Positions of each block: 2^s for a block that takes step s alone, one more and what 2^S lacks for the last."""
    steps = ascending_steps(size)
    if number == 1:
        return (size,)
    later = [2**s for s in range(steps - number + 1, steps)]
    later[-1] += 1 + size - 2**steps
    return (size - sum(later), *later)
