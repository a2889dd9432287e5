"""Several drafters' trees as one: a copy from the text where there is one, remembered successors where there is none.

The trees of all parts share a root, so branches they agree on are merged, and the cost model picks among all their nodes
by how often each part's have been accepted. What each part learns from every verified node it keeps learning.

    tree = union of the parts' branches;   kind(node) = (the first part that drafted it, its kind there, whether others did)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import catalog
from ..errors import MethodError
from .base import Drafter, Strategy
from .engine.tree import ROOT, DraftTree, Ints

if TYPE_CHECKING:
    from torch import Tensor

    from .engine.runtime import Output, Runtime
    from .engine.sampling import Sampling
    from .engine.tree import Path


def default_parts() -> tuple[Strategy, ...]:
    """A copy from the text, and remembered successors; long copies pay once they hold, and longer matches hold more often."""
    lookup, recycling = (catalog.strategy(slug).load() for slug in ("prompt-lookup", "token-recycling"))
    return lookup(ngram=6, count=32), recycling()


@dataclass(frozen=True)
class Joined(Strategy):
    """Drafts what any of several strategies drafts.

    Args:
        parts: strategies whose trees are functions of the past, at least two. The first has the whole budget, the next what
            it left; of equal branches the first part's counts.

    Raises:
        MethodError: fewer than two parts, or one that draws its drafts or asks a model for them.
    """

    parts: tuple[Strategy, ...] = field(default_factory=default_parts)

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise MethodError(f"Joined needs at least two parts, not {len(self.parts)}. Use the part itself.")
        for part in self.parts:
            if not part.batched or part.needs != Strategy.needs:
                raise MethodError(
                    f"Joined can't take {type(part).__name__}: its drafts cost a model's forwards. "
                    "Use PromptLookup, TokenRecycling or ADED."
                )

    @property
    def key(self) -> str:
        return " + ".join(part.key for part in self.parts)

    def drafter(self, runtime: Runtime, sampling: Sampling) -> JoinedDrafter:
        return JoinedDrafter([part.drafter(runtime, sampling) for part in self.parts])


class JoinedDrafter(Drafter):
    """Asks every part and merges what it hears."""

    def __init__(self, parts: Sequence[Drafter]) -> None:
        self.parts = parts

    @property
    def rests(self) -> bool:  # type: ignore[override]
        return all(part.rests for part in self.parts)

    def reset(self, prompt: Ints, prefill: Tensor | None) -> None:
        for part in self.parts:
            part.reset(prompt, prefill)

    def propose(self, committed: Ints, budget: int) -> DraftTree:
        tokens, parents, kinds = [int(committed[-1])], [ROOT], [0]
        known: dict[tuple[int, int], int] = {}  # (parent, token): node
        for number, part in enumerate(self.parts):
            if len(tokens) > budget:
                break
            tree = part.propose(committed, budget + 1 - len(tokens))
            place = [0] * tree.nodes
            for node in range(1, tree.nodes):
                at = (place[int(tree.parents[0, node])], int(tree.tokens[0, node]))
                if at in known:
                    kinds[known[at]] |= 1
                else:
                    known[at] = len(tokens)
                    tokens.append(at[1])
                    parents.append(at[0])
                    kinds.append(self._kind(number, int(tree.kinds[0, node])))
                place[node] = known[at]
        return DraftTree.of(tokens, parents, kinds)

    def observe(self, tree: DraftTree, output: Output, path: Path) -> None:
        for part in self.parts:
            part.observe(tree, output, path)

    def commit(self, path: Path) -> None:
        for part in self.parts:
            part.commit(path)

    def prior(self, kind: int) -> float:
        """What the first part believes; half of its doubt where another agrees."""
        inner, agreed = divmod(kind, 2)
        own, number = divmod(inner, len(self.parts))
        believed = self.parts[number].prior(own)
        return 1 - 0.5 * (1 - believed) if agreed else believed

    def _kind(self, part: int, own: int) -> int:
        return 2 * (own * len(self.parts) + part)
