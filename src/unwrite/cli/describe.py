"""What a class that is made on the command line says of itself: its fields with types, defaults and meanings, from its docstrings."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..terminal import text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Described", "described", "field_table", "summary"]


@dataclass(frozen=True)
class Described:
    """One field.

    Args:
        flag: as on the command line, "--retain-loss".
        takes: its type in words, or its choices.
        default: as it would be written; "" where it must be given.
        meaning: its line of the docstring of the class that documents it.
    """

    flag: str
    takes: str
    default: str
    meaning: str


def summary(cls: type) -> str:
    """The first line of a class's docstring."""
    return (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ").strip()


def described(cls: type) -> list[Described]:
    """The fields of a dataclass, in order; of those a base documents, the meaning is the base's."""
    hints, meanings = typing.get_type_hints(cls), _meanings(cls)
    return [
        Described(
            f"--{field.name.replace('_', '-')}",
            _words(hints[field.name]),
            _default(field),
            meanings.get(field.name, ""),
        )
        for field in dataclasses.fields(cls)
        if field.init
    ]


def field_table(cls: type) -> Table:
    """The fields as a table that fits 80 columns."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("field", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("what it is")
    for one in described(cls):
        takes = f" ({one.takes})" if one.takes else ""
        table.add_row(
            text(one.flag), text(one.default or "must be given"), text(f"{one.meaning or 'see its docstring'}{takes}")
        )
    return table


def _meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say under Args, the class before its bases."""
    from docstring_parser import parse

    meanings: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        for parameter in parse(vars(one).get("__doc__") or "").params:
            for name in parameter.arg_name.split(","):
                meanings[name.strip()] = " ".join((parameter.description or "").split())
    return meanings


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(filter(None, ("none" if part is type(None) else _words(part) for part in arguments)))
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        return f"{_words(arguments[0])}, several with commas between"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(hint, "a method's name" if hasattr(hint, "forgets") else "")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is MISSING:
        return "its own" if field.default_factory is not MISSING else ""
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value)
        if isinstance(value, int | str)
        else type(value).__name__
    )
