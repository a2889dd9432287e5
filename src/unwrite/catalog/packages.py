"""A package's public names, from the catalogue: imported when first used, so that a package costs nothing until then.

    __getattr__, __dir__ = lazily(__name__)

A package has the members whose modules are in it, and the names of its `[names]` table. `unwrite` has every method beside its own
table. What type checkers and editors see of it is its stub, `__init__.pyi`, which `unwrite docs` writes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UnwriteError
from . import KINDS, METHOD
from .reading import FILES, tables
from .records import OURS, Member


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`; `__all__` is known too.

    Args:
        package: the package's `__name__`.
    """

    def find(name: str) -> Any:
        if name == "__all__":
            return sorted(names_of(package))
        module = None if name.startswith("__") else names_of(package).get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted({*names_of(package), *vars(sys.modules[package])})


@lru_cache
def names_of(package: str) -> Mapping[str, str]:
    """{public name: the module that it is in}.

    Raises:
        UnwriteError: two modules for one name.
    """
    homes: dict[str, str] = {}
    for name, module in _listed(package):
        if homes.setdefault(name, module) != module:
            raise UnwriteError(f"{package}.{name} would be of {homes[name]} and of {module}. Rename one.")
    return homes


def _listed(package: str) -> Iterator[tuple[str, str]]:
    file = package.split(".")[1] if "." in package else package
    for module, names in tables(file).get("names", {}).get(package, {}).items():
        yield from ((name, f"{package}.{module}") for name in names)
    for kind in KINDS:
        for record in kind.in_file(file):
            if isinstance(record, Member) and record.module.startswith(f"{package}."):
                yield record.name, record.module
    if package == OURS:
        yield from ((record.name, record.module) for record in METHOD.in_file("forget"))


def packages() -> list[str]:
    """The packages whose names come from here."""
    return sorted(name for file in FILES for name in tables(file).get("names", {}))


def stubs(source: Path) -> dict[Path, str]:
    """Every package's stub: {file: text}. source: the folder that holds `unwrite`."""
    return {source.joinpath(*package.split("."), "__init__.pyi"): _stub(package) for package in packages()}


def _stub(package: str) -> str:
    homes = [(module.removeprefix(package), name) for name, module in names_of(package).items()]
    homes.sort(key=lambda home: (home[0], not home[1].isupper(), not home[1][0].isupper(), home[1].lower()))
    lines = ["# Written by `unwrite docs` from the catalogue, for type checkers and editors.", ""]
    lines += [f"from {module} import {name} as {name}" for module, name in homes]
    if package == OURS:
        lines += ["", "__version__: str"]
    return "\n".join(lines) + "\n"
