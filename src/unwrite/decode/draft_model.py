"""Speculative sampling with a smaller model: it writes a few tokens ahead, the target checks them all at once.

(Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318.) Token y drafted from p is kept with probability
min(1, q(y) / p(y)), else one is drawn from norm(max(0, q - p)). The baseline for every tree drafter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import MethodError, setting
from .base import Strategy
from .drafting import Growing, ModelDrafter, draft_runtime, gumbel_top_k, kind_of, name_of
from .engine.tree import DraftTree

if TYPE_CHECKING:
    from .engine.runtime import Runtime
    from .engine.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class DraftModel(Strategy):
    """A chain from a draft model.

    Args:
        draft_model: a causal model of the target's vocabulary, or a runtime of its own.
        depth: tokens drafted at most, at least 1; transformers' assisted generation calls it num_assistant_tokens.
    """

    draft_model: Any = None
    depth: int = 5
    batched: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise MethodError(f"{setting('depth')} is {self.depth}; it must be at least 1.")

    @property
    def key(self) -> str:
        return f"DraftModel {name_of(self.draft_model)}"

    def drafter(self, runtime: Runtime, sampling: Sampling) -> ChainDrafter:
        return ChainDrafter(draft_runtime(self.draft_model, runtime, "DraftModel"), sampling, self.depth)


class ChainDrafter(ModelDrafter):
    """One child a level."""

    def __init__(self, draft: Runtime, sampling: Sampling, depth: int) -> None:
        super().__init__(draft, sampling)
        self.depth = depth

    @cached_property
    def plans(self) -> list[DraftTree]:
        """Chains of 1 to `depth` tokens."""
        return [
            DraftTree.of([0] * (n + 1), np.arange(-1, n), [0, *(kind_of(d, 0) for d in range(1, n + 1))])
            for n in range(1, self.depth + 1)
        ]

    def grow(self, growing: Growing, depth: int, shape: int) -> bool:
        node = growing.frontier[0]
        log_p = growing.log_p[node]
        token = gumbel_top_k(log_p, 1, self.sampling) if self.sampling.do_sample else log_p.argmax()[None]
        growing.frontier = growing.add(node, token.tolist(), depth)
        return True
