"""Cells to strings: text, text in parts, lists of wrong answers, and what no tokenizer could take."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from ...runs import Malformed, parse_json
from .examples import flaw, is_visible
from .layouts import BadRow

TEXT_PARTS = ("text", "input_text", "output_text")
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3


class Flaw:
    """Stands in the place of a JSON value that can't be read: a name given twice, a number too long to parse."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def shown(value: object) -> str:
    """A value in at most forty characters, for a message of one line."""
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python prints
        return f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."


def plain(value: Any) -> Any:
    """Arrays, as pandas and numpy give them, as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def json_list(value: str, name: str) -> Any:
    """The list in a cell of a CSV file that holds one as JSON; any other string as it is.

    Raises:
        BadRow: it begins as a list and is none.
    """
    if not value.lstrip().startswith("["):
        return value
    try:
        return parse_json(value)
    except Malformed as error:
        raise BadRow(f"{name} is not a JSON list ({error})") from None


def text_of(value: object, name: str) -> str:
    """The string in a cell, or the joined text parts of one ([{"type": "text", "text": ...}]).

    Raises:
        BadRow: no string, nothing in it, a part that isn't text, or characters that can't be encoded.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(p, Mapping) and "type" in p for p in value):
        value = "".join(_part(part, number, name) for number, part in enumerate(value, start=1))
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a string but {shown(value)}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    if why := flaw(value):
        raise BadRow(f"{name} holds {why}")
    if not is_visible(value):
        raise BadRow(f"{name} holds no visible character, but {shown(value)}")
    return value


def _part(part: Mapping[str, Any], number: int, name: str) -> str:
    kind, text = part["type"], part.get("text")
    if kind not in TEXT_PARTS:
        raise BadRow(f"part {number} of {name} is {shown(kind)}; only text can be read")
    if not isinstance(text, str):
        raise BadRow(f"part {number} of {name} has no text but {shown(text)}")
    return text


def strings_of(value: object, name: str) -> tuple[str, ...]:
    """A list of non-empty strings; one string is a list of one, and a JSON list in a cell is read as such."""
    value = json_list(value, name) if isinstance(value, str) else plain(value)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item.strip() for item in value):
        raise BadRow(f"{name} must be a list of non-empty strings, not {shown(value)}")
    return tuple(text_of(item, name) for item in value)
