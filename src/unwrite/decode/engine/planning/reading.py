"""Which route reads a prompt fastest, for its length.

What a route saves differs with the length: fewer calls count in short prompts, attention and memory in long ones. So every class of
lengths, a factor of four wide, has a choice of its own, made by the token and from what prompts of the class took. A class that is met
for the first time begins with the choice of the nearest one, and tries the other route with its second prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .costs import SHAPE, SIZES
from .routes import ForwardRoutes

__all__ = ["ReadingRoutes"]

RAREST = 64  # prompts of a class between two tries of another route, at most
BY_TOKEN = tuple(seconds / rows for seconds, rows in zip(SHAPE, SIZES, strict=True))


class ReadingRoutes:
    """The routes of one runtime's prompts.

    Args:
        names: of the routes, the default first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.default = self.names[0]
        self._classes: dict[int, ForwardRoutes] = {}

    def of(self, tokens: int) -> ForwardRoutes:
        """The routes of prompts about so long."""
        at = class_of(tokens)
        if at not in self._classes:
            self._classes[at] = self._begin(at)
        return self._classes[at]

    def _begin(self, at: int) -> ForwardRoutes:
        # Prompts of a class differ in length: one that takes longer than the last ones is no sign of anything.
        routes = ForwardRoutes(self.names, BY_TOKEN, rarest=RAREST, dear=math.inf)
        if self._classes:
            routes.follow(self._classes[min(self._classes, key=lambda other: abs(other - at))])
        else:
            routes.current = self.default
        return routes


def class_of(tokens: int) -> int:
    """Lengths within a factor of four share a class."""
    return (max(1, tokens).bit_length() + 1) // 2
