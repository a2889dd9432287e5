"""Members that other installed packages add, by entry points: name -> object.

    [project.entry-points."unwrite.methods"]
    shout = "shouting.method:Shout"

What helps a person choose it stands in `unwrite.toml` beside the package's code, in the form of this catalogue's files but
without `entry`, and is read without importing anything:

    [[method]]
    slug = "shout"
    title = "Shout louder"
    ...

Where it says nothing, the class does: by its attribute `record`, a mapping of the record's fields, and by what it is. A package
that is broken, or takes a name of ours, costs one notice and nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UnwriteError, notice
from .records import Member, Record, load_entry, said

R = TypeVar("R", bound=Record)
FILE = "unwrite.toml"


@lru_cache
def foreign(kind: str, record: type[R], group: str, own_names: frozenset[str]) -> dict[str, R]:
    """The records of a kind that other packages add, by slug, in the order of the packages' names.

    Args:
        own_names: names that unwrite itself has.
    """
    records: dict[str, R] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (_package(point), point.name)):
        package = _package(point)
        try:
            if point.name in own_names:
                raise UnwriteError(f"unwrite has a {kind} of this name; it needs another")
            if point.name in records:
                raise UnwriteError(f"the package {records[point.name].package} has a {kind} of this name")
            records[point.name] = _record(kind, record, point, package)
        except (Exception, SystemExit) as error:
            notice(f"the {kind} {point.name!r} of the package {package} is left out: {said(error)}.")
    return records


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _record(kind: str, record: type[R], point: EntryPoint, package: str) -> R:
    """The record beside the package's code, or what the class says."""
    family = point.group.partition(".")[2]
    fixed: dict[str, Any] = {"slug": point.name, "family": family, "package": package, "entry": point.value}
    written = _written(kind, point.value.partition(":")[0].partition(".")[0]).get(point.name, {})
    said_too = {name: value for name, value in written.items() if name not in fixed}
    needed = {field.name for field in dataclasses.fields(record) if field.default is dataclasses.MISSING}
    if needed - set(fixed) - set(said_too):
        assert issubclass(record, Member)
        member = load_entry(point.value)
        said_too = {**record.said_by(member), **getattr(member, "record", {}), **said_too}
    return record.of(f"package {package}", {**said_too, **fixed})


def _written(kind: str, module: str) -> Mapping[str, Any]:
    """A package's own records of a kind by slug. module: at the top level; finding it imports nothing."""
    spec = importlib.util.find_spec(module)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / FILE
        if path.is_file():
            rows = tomllib.loads(path.read_text(encoding="utf-8")).get(kind, [])
            return {row["slug"]: row for row in rows}
    return {}
