"""Where the string literals and comments of a Python text lie, by tree-sitter: what is data there, and what is code."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ...errors import MissingExtra

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

__all__ = ["Literals", "literals_in"]

Range = tuple[int, int]


class Literals:
    """The string literals, without quotes, and the comments of one text, as character ranges.

    Args:
        ranges: sorted, [start, end), none within another.
    """

    def __init__(self, ranges: list[Range]) -> None:
        self.ranges = ranges
        self._starts = [start for start, _ in ranges]

    def around(self, at: int) -> Range | None:
        """The literal or comment that holds the character at `at`; None where it is code."""
        number = bisect_right(self._starts, at) - 1
        return self.ranges[number] if number >= 0 and at < self.ranges[number][1] else None


@lru_cache(maxsize=1)
def _parser() -> Parser:
    try:
        import tree_sitter
        import tree_sitter_python
    except ImportError:
        raise MissingExtra("tree-sitter", "code") from None
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_python.language()))


def literals_in(text: str) -> Literals | None:
    """The literals and comments of a Python text; None for a text that does not parse as Python, or holds neither.

    Raises:
        MissingExtra: tree-sitter is not installed.
    """
    data = text.encode("utf-8", "surrogatepass")
    root = _parser().parse(data).root_node
    if root.has_error:
        return None
    ranges: list[Range] = []
    waiting: list[Node] = [root]
    while waiting:
        node = waiting.pop()
        if node.type == "comment":
            ranges.append((node.start_byte, node.end_byte))
        elif node.type == "string":
            ranges.append(_inside(node))
        else:
            waiting.extend(node.children)
    return Literals(sorted(_characters(text, data, ranges))) if ranges else None


def _inside(node: Any) -> Range:
    """A string's bytes between its quotes."""
    first, last = node.children[0], node.children[-1]
    return first.end_byte, last.start_byte


def _characters(text: str, data: bytes, ranges: list[Range]) -> list[Range]:
    """Byte ranges as character ranges."""
    if len(data) == len(text):
        return ranges
    starts = list(accumulate((len(one.encode("utf-8", "surrogatepass")) for one in text), initial=0))
    at = {byte: character for character, byte in enumerate(starts)}
    return [(at[start], at[end]) for start, end in ranges]
