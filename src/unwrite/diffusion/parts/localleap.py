"""LocalLeap: near a token the model is sure of, a lower bar is enough (arXiv 2510.07081).

Predictions next to a determined token mostly are final already, and less so with every position further away. In each step

    anchors A = {i : c_i >= kappa}        reveal i where c_i >= tau, if some a in A has |a - i| <= W, else where c_i >= kappa

and always the surest. One pass: what the lower bar lets through is no anchor, now or later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import MethodError
from ..base import Commit, CommitRule, Step, best, not_negative, ranked

if TYPE_CHECKING:
    from ..sampler import Sampler

__all__ = ["LocalLeap", "RandomNeighbours", "Settled", "delays", "settled"]


@dataclass(frozen=True)
class LocalLeap(CommitRule):
    """`trace.counts` tells why tokens were revealed: "anchor_commits", "relaxed_commits", "forced_commits" (the surest, where no
    anchor was).

    Args:
        threshold: confidence of an anchor, at least 0.
        relaxed: the bar near an anchor, at most `threshold`; None for plain threshold decoding.
        radius: positions on each side of an anchor that are near; tokens, so more of them for a model of characters.
        transitive: what the lower bar lets through lowers it for its own neighbours, in the same step; not the paper's rule.
    """

    threshold: float = 0.9
    relaxed: float | None = 0.75
    radius: int = 4
    transitive: bool = False

    def __post_init__(self) -> None:
        not_negative(self, threshold=self.threshold, relaxed=self.bar, radius=self.radius)
        if self.bar > self.threshold:
            raise MethodError(
                f"{type(self).__name__}: relaxed is {self.relaxed}, above threshold, {self.threshold}. Lower it, or use None."
            )

    @property
    def bar(self) -> float:
        """What a neighbour needs."""
        return self.threshold if self.relaxed is None else self.relaxed

    def check(self, sampler: Sampler) -> None:
        """Refuses an order without confidence: drawn scores make anchors of anything."""
        if sampler.score.ranks_by == "chance":
            raise MethodError(
                f"{type(self).__name__} looks for sure tokens, and {sampler.score} draws its scores. Use Confidence()."
            )

    def commit(self, step: Step) -> Commit:
        anchors = step.masked & (step.confidence >= self.threshold)
        sure = step.masked & (step.confidence >= self.bar)
        relaxed = self.neighbours(step, anchors) & sure & ~anchors
        forced = best(step) & ~anchors  # the surest is an anchor where there is one
        step.count("anchor_commits", anchors.sum(1))
        step.count("relaxed_commits", relaxed.sum(1))
        step.count("forced_commits", forced.sum(1))
        return Commit(anchors | relaxed | forced)

    def neighbours(self, step: Step, anchors: Tensor) -> Tensor:
        """[rows, width] where the lower bar holds. anchors: [rows, width]."""
        if not self.transitive:
            return _near(anchors, self.radius)
        # Sure positions with gaps of at most `radius` hang together; a chain with an anchor in it is revealed whole.
        sure = step.masked & (step.confidence >= self.bar)
        places = torch.arange(sure.shape[1], device=sure.device).expand_as(sure)
        latest = places.masked_fill(~sure, 0).cummax(1).values
        before = F.pad(latest[:, :-1], (1, 0))
        chain = (sure & (places - before > self.radius)).cumsum(1)
        anchored = torch.zeros(len(sure), sure.shape[1] + 1, device=sure.device)
        anchored = anchored.scatter_reduce(1, chain, anchors.float(), "amax")
        return sure & anchored.gather(1, chain).bool()


@dataclass(frozen=True)
class RandomNeighbours(LocalLeap):
    """LocalLeap with as many neighbours, but drawn among all masked positions of the block: the control that asks whether
    being near matters. Args as `LocalLeap`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transitive:
            raise MethodError("RandomNeighbours: transitive is True; drawn neighbours make no chains. Leave it out.")

    def neighbours(self, step: Step, anchors: Tensor) -> Tensor:
        """[rows, width]"""
        others = step.masked & ~anchors
        count = (_near(anchors, self.radius) & others).sum(1)
        return ranked(step, count, step.random_places().masked_fill(anchors, -torch.inf))


def _near(anchors: Tensor, radius: int) -> Tensor:
    """[rows, width] whether an anchor is at most `radius` positions away."""
    radius = min(radius, anchors.shape[1] - 1)
    return F.max_pool1d(anchors.float()[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0


@dataclass(frozen=True)
class Settled:
    """Masked positions by confidence and distance, in steps that had an anchor.

    Args:
        final: [buckets, distances] how many would have got the token that they have in the end.
        seen: [buckets, distances] how many there were.
    """

    final: Tensor
    seen: Tensor

    @property
    def share(self) -> Tensor:
        """[buckets, distances] P(the token proposed now is the final one); nan where none was seen."""
        return self.final / self.seen


def settled(
    steps: Iterable[Step],
    sequences: Tensor,
    threshold: float = 0.9,
    edges: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    farthest: int = 8,
) -> Settled:
    """How often a proposal is final, by its confidence and the distance to the nearest anchor.

    What a step reveals is final by being revealed, so watch a sampler that reveals one token a step.

    Args:
        steps: all that `Sampler.watch` was given in one call.
        sequences: [batch, longest] what the call wrote.
        threshold: confidence of an anchor.
        edges: between the buckets of confidence; one at an edge belongs to the upper bucket.
        farthest: the last distance, with all that are greater.
    """
    shape = (len(edges) + 1, farthest + 1)
    final = torch.zeros(shape[0] * shape[1], dtype=torch.long, device=sequences.device)
    seen = torch.zeros_like(final)
    bounds = torch.tensor(edges, dtype=torch.float64, device=sequences.device)
    for step in steps:
        distance = _distance(step.masked & (step.confidence >= threshold))
        bucket = torch.bucketize(step.confidence, bounds, right=True)
        cell = bucket * shape[1] + distance.clamp(max=farthest)
        counted = step.masked & (distance < step.masked.shape[1])
        same = step.proposed == sequences[step.rows].gather(1, step.columns)
        seen += torch.bincount(cell[counted], minlength=len(seen))
        final += torch.bincount(cell[counted & same], minlength=len(final))
    return Settled(final.view(shape), seen.view(shape))


def _distance(anchors: Tensor) -> Tensor:
    """[rows, width] positions to the nearest anchor; at least `width` where the row has none."""
    width = anchors.shape[1]
    places = torch.arange(width, device=anchors.device).expand_as(anchors)
    before = places.masked_fill(~anchors, -2 * width).cummax(1).values
    after = places.masked_fill(~anchors, 3 * width).flip(1).cummin(1).values.flip(1)
    return torch.minimum(places - before, after - places)


def delays(steps: Iterable[Step], sequences: Tensor) -> Tensor:
    """How long tokens that were settled waited to be revealed.

    Args:
        steps: all that `Sampler.watch` was given in one call.
        sequences: [batch, longest] what the call wrote.

    Returns:
        [batch, generated] steps from the first one from which the final token was proposed without interruption, counted
        within its block, to the one that revealed it; -1 where nothing was revealed.
    """
    since = waited = None
    for step in steps:
        if since is None or waited is None:
            since = torch.full((len(step.rows), step.size + 1), -1, device=sequences.device)
            waited = since.clone()
        place = step.columns - step.prompt[:, None]
        place = place.masked_fill(~step.masked, step.size)  # what is written goes to a column of its own
        number = step.number[:, None].expand_as(place)
        same = step.proposed == sequences[step.rows].gather(1, step.columns)
        since_step = since[step.rows].gather(1, place)
        since_step = torch.where(since_step < 0, number, since_step).masked_fill(~same, -1)
        since[step.rows] = since[step.rows].scatter(1, place, since_step)
        shown = step.masked & (step.tokens != step.mask_id)
        gap = (number - since_step).masked_fill(since_step < 0, 0)
        waited[step.rows] = waited[step.rows].scatter(1, place.masked_fill(~shown, step.size), gap)
    if waited is None:
        raise MethodError("delays: there are no steps. Collect them with Sampler(watch=steps.append).")
    return waited[:, :-1]
