"""Blocks of one size, counts per step, and the plain rules for which positions a step reveals.

top-k      the q_i surest, q_i = m // S + 1[i < m % S]            LLaDA, arXiv 2502.09992
threshold  all with confidence >= tau, at least one                Fast-dLLM, arXiv 2505.22618
factor     the n surest, largest n with (n + 1)(1 - c_(n)) <= f    ibid., equation 5
RCR, ReMDM reveal more than asked and hide the least sure again
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...errors import MethodError
from ..base import Blocks, Commit, CommitRule, Edit, Logits, Quota, Step, at_least_one, not_negative, ranked
from .proposing import is_end

if TYPE_CHECKING:
    from ..sampler import Sampler


@dataclass(frozen=True)
class FixedBlocks(Blocks):
    """Blocks of one size; the last one takes what remains.

    Args:
        size: positions, at least 1; None for a single block.
    """

    size: int | None = 32

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise MethodError(f"FixedBlocks: size is {self.size}; use at least 1.")

    @property
    def default(self) -> int:
        return self.size or 1 << 30

    def block_size(self, generated: int) -> int:
        return min(self.default, generated)

    def lengths(self, step: Step) -> Tensor:
        """[rows]"""
        return torch.full_like(step.start, self.default)


@dataclass(frozen=True)
class Uniform(Quota):
    """The block's masks spread evenly over its share of the steps, the first steps one more where it doesn't divide."""

    spreads_evenly: ClassVar[bool] = True

    def check(self, sampler: Sampler) -> None:
        """Refuses steps that do not divide into the blocks."""
        size, steps = sampler.gen_length, sampler.steps or sampler.gen_length
        block = sampler.blocks.block_size(size)
        if not sampler.commit.counts or block is None or block >= size:
            return
        if size % block:
            raise MethodError(
                f"gen_length {size} is no multiple of the block size {block}, and Uniform spreads steps over equal "
                "blocks. Change one, or use Threshold."
            )
        if steps % (size // block):
            raise MethodError(
                f"steps {steps} is no multiple of the number of blocks, {size // block}. Change steps or the block size."
            )

    def count(self, step: Step) -> Tensor:
        """[rows]"""
        steps = _steps(step)
        return step.at_entry // steps + (step.in_block < step.at_entry % steps).long()


def _steps(step: Step) -> Tensor:
    """[rows] the block's share of all steps, rounded up. What an edit cuts off takes none of them away: the rest keeps its pace."""
    return (-(-step.opened * step.total // step.size)).clamp(min=1)


@dataclass(frozen=True)
class Fading(Quota):
    """Dream's schedule: of the masks left, the share that the time falls by, t from 1 to eps; the last step reveals all.

    Args:
        eps: the last time, in (0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise MethodError(f"Fading: eps is {self.eps}; use a value above 0 and below 1.")

    def share(self, step: Step) -> Tensor:
        """[rows] 1 - s / t of this step, float64; 1 at the last one."""
        steps = _steps(step)
        t = 1 + (self.eps - 1) * step.in_block.double() / steps
        s = 1 + (self.eps - 1) * (step.in_block + 1).double() / steps
        return torch.where(step.in_block + 1 >= steps, torch.ones_like(t), 1 - s / t)

    def count(self, step: Step) -> Tensor:
        """[rows] rounded down: a step may reveal none."""
        return (step.masked.sum(1) * self.share(step)).long()


@dataclass(frozen=True)
class TopK(CommitRule):
    """The surest positions, as many as the quota says.

    Args:
        temperature: above 0 positions are drawn without replacement, by softmax(score / temperature): Dream's alg_temp.
    """

    temperature: float = 0.0
    counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        not_negative(self, temperature=self.temperature)

    def commit(self, step: Step) -> Commit:
        if self.temperature == 0:
            return Commit(ranked(step, step.quota))
        u = step.random_places().clamp(min=1e-300)
        return Commit(ranked(step, step.quota, step.confidence / self.temperature - torch.log(-torch.log(u))))


@dataclass(frozen=True)
class Origin(CommitRule):
    """Every masked position on its own, with the share of the time that passes: Dream's "origin".

    Args:
        schedule: of the times.
    """

    schedule: Fading = Fading()
    draws_places: ClassVar[bool] = True

    def commit(self, step: Step) -> Commit:
        return Commit(step.masked & (step.random_places() < self.schedule.share(step)[:, None]))


@dataclass(frozen=True)
class Threshold(CommitRule):
    """Every position at least this sure, and always the surest.

    Args:
        threshold: at least 0. At 0 a block takes one forward, above 1 every token does.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        not_negative(self, threshold=self.threshold)

    def commit(self, step: Step) -> Commit:
        return Commit(at_least_one(step, step.masked & (step.confidence >= self.threshold)))


@dataclass(frozen=True)
class Factor(CommitRule):
    """The n surest positions, n the first at which the next one fails (n + 1)(1 - c) <= factor; at least one.

    Args:
        factor: at least 0; larger reveals more.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        not_negative(self, factor=self.factor)

    def commit(self, step: Step) -> Commit:
        scores = step.confidence.masked_fill(~step.masked, -torch.inf).sort(dim=1, descending=True, stable=True).values
        n = torch.arange(1, scores.shape[1] + 1, device=scores.device)
        good = (n + 1) * (1 - scores) <= self.factor
        return Commit(at_least_one(step, ranked(step, good.long().cumprod(1).sum(1))))


@dataclass(frozen=True)
class RCR(CommitRule):
    """Running-confidence remasking: reveals the whole block, then hides what was least sure when it was revealed, as many
    as later steps' quotas still have to reveal. The forwards are the plain loop's."""

    counts: ClassVar[bool] = True

    def commit(self, step: Step) -> Commit:
        memory, width = step.memory(self), step.masked.shape[1]
        # What this block's steps did not reveal, given tokens among it, is never hidden.
        sure = memory.get("sure", width, fill=torch.inf, dtype=torch.float64, per_block=True)
        sure = torch.where(step.masked, step.confidence, sure)
        memory.put("sure", sure)
        later = step.masked.sum(1) - step.quota
        return Commit(step.masked, hide=least(sure.masked_fill(~step.inside, torch.inf), later))


def least(scores: Tensor, count: Tensor) -> Tensor:
    """[rows, width] the `count` [rows] positions with the lowest scores, of equals the leftmost; none at infinity."""
    order = scores.sort(dim=1, stable=True).indices
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (ranks < count[:, None]) & torch.isfinite(scores)


@dataclass(frozen=True)
class ReMDM(CommitRule):
    """Plain quotas, with steps put in late in the block: before each, the least sure of what was revealed is hidden again, and
    the step reveals as many.

    Args:
        extra: steps added to a block; its forwards grow by as many.
        number: positions hidden in each.
        after: share of the block's positions after whose number of steps they come.
    """

    extra: int = 1
    number: int = 2
    after: float = 7 / 8
    counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.extra < 0 or self.number < 1 or not 0 < self.after < 1:
            raise MethodError(
                f"ReMDM: extra {self.extra}, number {self.number}, after {self.after}; use extra >= 0, number >= 1, 0 < after < 1."
            )

    def check(self, sampler: Sampler) -> None:
        """Refuses other quotas: the steps put in need to know where the regular ones stand."""
        if not sampler.quota.spreads_evenly:
            raise MethodError(
                f"ReMDM counts as Uniform does, and the quota is {type(sampler.quota).__name__}. Use quota=Uniform()."
            )

    def commit(self, step: Step) -> Commit:
        memory, width = step.memory(self), step.masked.shape[1]
        sure = memory.get("sure", width, fill=torch.inf, dtype=torch.float64, per_block=True)
        hidden = memory.get("hidden", dtype=torch.long, per_block=True)
        steps = torch.minimum(_steps(step), step.at_entry).clamp(min=1)
        begin = torch.minimum((step.opened * self.after).long().clamp(min=1), (step.opened - 1).clamp(min=1))
        begin = torch.minimum(begin, steps)  # no later than the block's last regular step
        late = (step.in_block >= begin) & (step.in_block < begin + self.extra)
        # The quota's own clock stands still during the steps put in.
        passed = step.in_block - (step.in_block - begin).clamp(min=0).clamp(max=self.extra)
        own = Uniform().count(replace(step, in_block=passed))
        reveal = ranked(step, torch.where(late, hidden, own))
        sure = torch.where(reveal, step.confidence, sure)
        following = step.in_block + 1
        then = (following >= begin) & (following < begin + self.extra)
        hide = least(sure.masked_fill(~step.inside, torch.inf), torch.where(then, self.number, 0))
        memory.put("sure", sure.masked_fill(hide, torch.inf))
        memory.put("hidden", hide.sum(1))
        return Commit(reveal, hide)


@dataclass(frozen=True)
class NoEnd(Logits):
    """Takes end tokens out of the choice: LLaDA's logits_eos_inf."""

    def fuse(self, step: Step) -> Tensor:
        """[rows, width, vocab]"""
        ends = torch.tensor(step.eos_ids, dtype=torch.long, device=step.fused.device)
        return step.fused.index_fill(-1, ends, -math.inf)


@dataclass(frozen=True)
class EarlyStop(Edit):
    """A finished block with an end token in it ends the row: what follows would be cut."""

    def edit(self, step: Step, revealed: Tensor) -> Tensor:
        """[rows]"""
        tokens = step.tokens
        whole = ~((tokens == step.mask_id) & step.inside).any(1)
        ended = (is_end(tokens, step.eos_ids) & step.inside).any(1)
        return torch.where(whole & ended, step.end, step.length)
