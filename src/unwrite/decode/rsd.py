"""Recursive speculative decoding: a draft tree whose siblings are drawn without replacement.

A chain of drafts ends at its first rejection; siblings give the target a second and a third choice, and drawn without
replacement no choice is offered twice. RSD-C gives every node of a level the same number of children, RSD-S keeps the best
`beam_width` sequences of a stochastic beam search. (arXiv 2402.14160; the rule of acceptance is in `engine/drafting.py`)

    children of s: the k largest of log p(v|s) + Gumbel_v, in that order;   emitted token ~ q exactly
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import MethodError, setting
from .base import Strategy
from .drafting import Growing, ModelDrafter, draft_runtime, gumbel_top_k, kind_of, name_of, stochastic_beam_step
from .engine.tree import DraftTree

if TYPE_CHECKING:
    from .engine.runtime import Runtime
    from .engine.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class RSD(Strategy):
    """A tree from a draft model; equal in distribution to the target, identical when greedy.

    Args:
        draft_model: a causal model of the target's vocabulary, or a runtime of its own.
        mode: "C" for constant branching a level, "S" for stochastic beam search.
        branching: of mode C, children of every node at each level, at least 1 each.
        beam_width: of mode S, sequences kept a level, at least 1.
        depth: of mode S, levels, at least 1.
    """

    draft_model: Any = None
    mode: Literal["C", "S"] = "S"
    branching: tuple[int, ...] = (2, 2, 2)
    beam_width: int = 3
    depth: int = 4
    batched: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.mode not in ("C", "S"):
            raise MethodError(f"{setting('mode')} is {self.mode!r}; use 'C' or 'S'.")
        if not self.branching or min(self.branching) < 1:
            raise MethodError(f"{setting('branching')} is {self.branching}; every level needs at least 1 child.")
        for name, value in (("beam_width", self.beam_width), ("depth", self.depth)):
            if value < 1:
                raise MethodError(f"{name} is {value}; it must be at least 1.")

    @property
    def key(self) -> str:
        return f"RSD-{self.mode} {name_of(self.draft_model)}"

    def drafter(self, runtime: Runtime, sampling: Sampling) -> ConstantDrafter | BeamDrafter:
        draft = draft_runtime(self.draft_model, runtime, "RSD")
        if self.mode == "C":
            return ConstantDrafter(draft, sampling, self.branching)
        return BeamDrafter(draft, sampling, self.beam_width, self.depth)


class ConstantDrafter(ModelDrafter):
    """RSD-C: b_l children for every node of level l."""

    def __init__(self, draft: Runtime, sampling: Sampling, branching: tuple[int, ...]) -> None:
        super().__init__(draft, sampling)
        self.branching = branching

    @cached_property
    def plans(self) -> list[DraftTree]:
        """The tree down to each of its levels; a plan is chosen before anything is drawn, so exactness stays."""
        return [_even_tree(self.branching[:levels]) for levels in range(1, len(self.branching) + 1)]

    def grow(self, growing: Growing, depth: int, shape: int) -> bool:
        frontier: list[int] = []
        for node in growing.frontier:
            children = self._children(growing.log_p[node], self.branching[depth - 1])
            frontier += growing.add(node, children.tolist(), depth)
        growing.frontier = frontier
        return bool(frontier)

    def _children(self, log_p: Tensor, count: int) -> Tensor:
        if self.sampling.do_sample:
            return gumbel_top_k(log_p, count, self.sampling)
        return log_p.topk(min(count, int(torch.isfinite(log_p).sum()))).indices


class BeamDrafter(ModelDrafter):
    """RSD-S: the best sequences of a stochastic beam search; of a beam search when nothing is sampled."""

    def __init__(self, draft: Runtime, sampling: Sampling, width: int, depth: int) -> None:
        super().__init__(draft, sampling)
        self.width, self.depth = width, depth

    @cached_property
    def plans(self) -> list[DraftTree]:
        """`width` sequences down to each level, as if each kept one child: what is drawn decides the true shape."""
        return [_even_tree((self.width, *[1] * (levels - 1))) for levels in range(1, self.depth + 1)]

    def grow(self, growing: Growing, depth: int, shape: int) -> bool:
        log_p = torch.stack([growing.log_p[node] for node in growing.frontier])
        if depth == 1:
            self._phi, self._u = log_p.new_zeros(1).double(), log_p.new_zeros(1).double()
        if self.sampling.do_sample:
            parent, token, phi, u = stochastic_beam_step(self._phi, self._u, log_p, self.width, self.sampling)
        else:
            joint = (self._phi[:, None] + log_p.double()).flatten()
            best = joint.topk(min(self.width, int(torch.isfinite(joint).sum())))
            parent, token = best.indices // log_p.shape[1], best.indices % log_p.shape[1]
            phi = u = best.values
        above = [growing.frontier[index] for index in parent.tolist()]
        # Over all parents by decreasing value, so of each parent's children the larger comes first, as it was drawn.
        growing.frontier = [
            growing.add(node, [word], depth)[0] for node, word in zip(above, token.tolist(), strict=True)
        ]
        self._phi, self._u = phi, u
        return bool(growing.frontier)


def _even_tree(branching: tuple[int, ...]) -> DraftTree:
    """The shape with b_l children for every node of level l."""
    parents, kinds, level = [-1], [0], [0]
    for depth, count in enumerate(branching, 1):
        below = []
        for node in level:
            for order in range(count):
                below.append(len(parents))
                parents.append(node)
                kinds.append(kind_of(depth, order))
        level = below
    assert len(parents) == 1 + sum(prod(branching[: n + 1]) for n in range(len(branching)))
    return DraftTree.of([0] * len(parents), parents, kinds)
