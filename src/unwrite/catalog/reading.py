"""Reads the catalogue's files: any kind of record from any family's file, once for all kinds.

A family's file holds tables of records (`[[method]]`, `[[part]]`, ...), the names its package has beside its members
(`[names."unwrite.forget"]`, module -> names), and the readers of folders that its guards save (`[loader]`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

from ..errors import MethodError, UnwriteError, unknown
from .foreign import foreign
from .records import FAMILIES, Record

R = TypeVar("R", bound=Record)
FILES = (*FAMILIES, "bench", "data", "models", "unwrite")  # the families, and packages that are none
SECTIONS = ("names", "loader")  # of a file, beside its records


@dataclass(frozen=True)
class Kind(Generic[R]):
    """A kind of record: its members in this package, and in all that are installed.

    Args:
        name: of the table in the files, and in messages.
        record: its class.
        group: of the entry points by which other packages add members, or None.
    """

    name: str
    record: type[R]
    group: str | None = None

    def own(self) -> dict[str, R]:
        """The records of this package by slug, in the files' order."""
        return _own(self)

    def all(self) -> dict[str, R]:
        """All records by slug: ours, then those that other packages add."""
        own = self.own()
        if self.group is None:
            return dict(own)
        record: Any = self.record  # a class is a key of a cache, which mypy doubts of a type variable
        return {**own, **foreign(self.name, record, self.group, frozenset(own))}

    def get(self, slug: str) -> R:
        """One record; an unknown slug is refused with the nearest one."""
        record = self.own().get(slug) or self.all().get(slug)
        if record is None:
            raise MethodError(unknown(self.name, slug, self.all()))
        return record

    def in_file(self, name: str) -> Iterable[R]:
        """The records of one file."""
        for row in tables(name).get(self.name, ()):
            yield self.record.of(f"catalog/{name}.toml", {**row, "family": name})


@lru_cache
def _own(kind: Kind[R]) -> dict[str, R]:
    records: dict[str, R] = {}
    for name in FILES:
        for record in kind.in_file(name):
            if record.slug in records:
                raise UnwriteError(f"{record.where}: the {kind.name} {record.slug} stands twice. Rename one.")
            records[record.slug] = record
    return records


@lru_cache
def tables(name: str) -> Mapping[str, Any]:
    """A file as it stands; empty where a family has none."""
    path = files(__package__).joinpath(f"{name}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
