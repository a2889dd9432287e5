"""Prompt lookup: where the last few tokens stood before, what followed them then may follow now.

No model, no table: a search through the text itself. (Saxena 2023, prompt-lookup-decoding; windows and the cut of the copy as
transformers 5.23 has them, with n-grams up to 3.) The baseline for every drafter that needs no training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MethodError
from .base import Drafter, Strategy
from .engine.tree import DraftTree, Ints

if TYPE_CHECKING:
    from .engine.runtime import Runtime
    from .engine.sampling import Sampling

LONG = 8  # depths beyond this one share their statistics


@dataclass(frozen=True, kw_only=True)
class PromptLookup(Strategy):
    """Copies what followed the earliest other occurrence of the last n-gram.

    Args:
        ngram: longest n-gram looked up, at least 1; shorter ones are tried after it.
        count: tokens copied at most, at least 1.
    """

    ngram: int = 3
    count: int = 10

    def __post_init__(self) -> None:
        for name, value in (("ngram", self.ngram), ("count", self.count)):
            if value < 1:
                raise MethodError(f"{name} is {value}; it must be at least 1.")

    def drafter(self, runtime: Runtime, sampling: Sampling) -> LookupDrafter:
        return LookupDrafter(self.ngram, self.count)


class LookupDrafter(Drafter):
    """Searches the committed text."""

    rests = True

    def __init__(self, ngram: int, count: int) -> None:
        self.ngram, self.count = ngram, count

    def propose(self, committed: Ints, budget: int) -> DraftTree:
        root = int(committed[-1])
        for size in range(min(self.ngram, len(committed) - 1), 0, -1):
            start = first_match(committed, size)
            if start is not None:
                copied = committed[start + size : start + size + min(self.count, budget)]
                return DraftTree.chain(root, copied, [_kind(size, depth) for depth in range(len(copied))])
        return DraftTree.of([root], [-1])

    def prior(self, kind: int) -> float:
        """Longer matches are surer, and a copy that has held so far goes on holding."""
        size, depth = divmod(kind, LONG)
        return (0.2, 0.4, 0.6)[min(size, 3) - 1] if depth == 0 else 0.8


def first_match(ids: Ints, size: int) -> int | None:
    """Start of the first earlier occurrence of the last `size` ids, with at least one token after it."""
    last = len(ids) - size
    hits = ids[:last] == ids[last]
    for offset in range(1, size):
        hits &= ids[offset : last + offset] == ids[last + offset]
    at = int(hits.argmax()) if len(hits) else 0
    return at if len(hits) and hits[at] else None


def _kind(size: int, depth: int) -> int:
    return min(size, 3) * LONG + min(depth, LONG - 1)
