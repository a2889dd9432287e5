"""JSON from outside, read strictly: what two readers could take for two values is refused, and named.

Python's own reader takes NaN and Infinity, keeps the last of two values of one name, raises other errors for numbers of more than
4,300 digits and for deep nesting, and lets strings through that can't be written again. Here each is refused with its place in the value.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import RunError, UnwriteError

__all__ = ["DEEPEST", "LONGEST_NUMBER", "Malformed", "conforms", "parse_json", "read_json", "strings_flaw"]

DEEPEST = 100
LONGEST_NUMBER = 4000  # digits; Python refuses to parse more than 4,300


class Malformed(ValueError):
    """What is wrong with a text of JSON, in some words."""


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a text of JSON.

    Args:
        text: bytes are UTF-8, with or without a byte order mark.
        finite: refuse NaN and Infinity, and numbers too large for a float.

    Raises:
        Malformed: no JSON, or a value that is refused; a message without its file.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Malformed(f"it is not UTF-8 text at byte {error.start}") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_number if finite else float,
            parse_constant=_constant if finite else float,
        )
    except json.JSONDecodeError as error:
        raise Malformed(f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise Malformed(f"it is nested more than {DEEPEST} deep") from None
    for place, depth, item in _walk(value):
        if depth > DEEPEST:
            raise Malformed(f"it is nested more than {DEEPEST} deep")
        if isinstance(item, str) and (flaw := strings_flaw(item)):
            raise Malformed(f"{place or 'it'} holds {flaw}")
    return value


def read_json(
    path: str | Path,
    error: Callable[[str], UnwriteError] = RunError,
    hint: str = "Restore it, or make it again.",
    *,
    finite: bool = True,
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        error: what to raise.
        hint: what to do about a damaged file.
        finite: as `parse_json`.

    Raises:
        UnwriteError: as `error` makes it: the file can't be read, is no JSON or no object.
    """
    try:
        value = parse_json(Path(path).read_bytes(), finite=finite)
    except OSError as why:
        raise error(f"{path} can't be read ({why.strerror or why}). {hint}") from None
    except Malformed as why:
        raise error(f"{path} is damaged: {why}. {hint}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, not an object. {hint}")
    return value


def strings_flaw(text: str) -> str | None:
    """What keeps a string from being encoded, hashed or tokenised; None for all others."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start + 1}), which is no text"
    return None


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, its parts too: the plain ones, `Literal`, unions, lists, tuples, mappings and dataclasses."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(conforms(value, one) for one in args)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if origin is tuple:
        whole = isinstance(value, tuple)
        if args[1:] == (...,):
            return whole and all(conforms(one, args[0]) for one in value)
        return whole and len(value) == len(args) and all(map(conforms, value, args))
    if origin is list:
        return isinstance(value, list) and all(conforms(one, args[0]) for one in value)
    if origin is dict or origin is Mapping:
        return isinstance(value, Mapping) and all(
            conforms(k, args[0]) and conforms(v, args[1]) for k, v in value.items()
        )
    if hint is float:
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return whole or isinstance(value, float)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return isinstance(value, hint) and all(
            conforms(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(hint)
        )
    return isinstance(value, hint) if isinstance(hint, type) else False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise Malformed(f"it names {next(name for name in names if names.count(name) > 1)!r:.80} twice")
    return members


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise Malformed(f"it holds a number of {len(digits):,} digits, of {LONGEST_NUMBER:,} at most")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Malformed(f"it holds the number {digits[:40]}, which is too large")
    return value


def _constant(name: str) -> float:
    raise Malformed(f"it holds {name}, which is no finite number")


def _walk(value: Any) -> Iterator[tuple[str, int, Any]]:
    """Every value and name with the name it stands under and its depth."""
    stack: list[tuple[str, int, Any]] = [("", 1, value)]
    while stack:
        place, depth, item = stack.pop()
        yield place, depth, item
        if depth > DEEPEST:
            continue
        if isinstance(item, dict):
            stack += [(place, depth + 1, name) for name in item]
            stack += [(ascii(name)[:60], depth + 1, one) for name, one in item.items()]
        elif isinstance(item, list):
            stack += [(place, depth + 1, one) for one in item]
