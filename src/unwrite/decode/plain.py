"""Plain decoding through the engine: one token a forward, nothing drafted. The control for every strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import Drafter, Strategy
from .engine.tree import DraftTree, Ints

if TYPE_CHECKING:
    from .engine.runtime import Runtime
    from .engine.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Plain(Strategy):
    """Drafts nothing."""

    drafts: ClassVar[bool] = False

    def drafter(self, runtime: Runtime, sampling: Sampling) -> NoDrafter:
        return NoDrafter()


class NoDrafter(Drafter):
    """Proposes the root alone."""

    rests = True
    drafts = False

    def propose(self, committed: Ints, budget: int) -> DraftTree:
        return DraftTree.of([int(committed[-1])], [-1])
