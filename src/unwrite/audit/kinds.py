"""The kinds of data there are audits for: one line each. Everything else about a kind stands in its context class."""

from __future__ import annotations

from ..errors import MethodError
from .context import Context
from .images.context import ImageContext
from .text.context import TextContext

CONTEXTS: list[type[Context]] = [
    TextContext,
    ImageContext,
]


def context_for(split: object) -> type[Context]:
    """Finds the class of contexts for this kind of split.

    Raises:
        MethodError: there is none.
    """
    kind = next((kind for kind in CONTEXTS if kind.holds(split)), None)
    if kind is None:
        known = ", ".join(one.kind for one in CONTEXTS)
        raise MethodError(f"there is no audit of a {type(split).__name__}; give a split of {known}.")
    return kind
