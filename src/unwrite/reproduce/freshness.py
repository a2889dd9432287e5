"""Whether a stored result is of today's code: hashes of its experiment, its method and its bed, and the list of those that are not.

A hash is of what the code does: comments, docstrings and formatting leave it as it was. `stale.toml` is
the one list of results that are to be measured again, each with its reason; every table that shows a verdict marks them, and
a test holds that the list is exactly what `staleness` says.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import catalog
from ..errors import MethodError
from ..runs import hash_file, hash_json

FAMILIES = ("forget", "audit", "shield", "decode", "diffusion", "cache", "compress")
MARK = "†"
DEMO = "demo"  # stored beside the benchmarks, and made by a command


def hashes(slug: str) -> dict[str, str]:
    """Of the experiment, of the method (what it takes from the families, and the system's records), and of the bed.

    Args:
        slug: a system with an experiment, or "demo".
    """
    module = "unwrite.cli.demo" if slug == DEMO else f"unwrite.reproduce.{slug.replace('-', '_')}"
    if find_spec(module) is None:
        raise MethodError(f"{slug} is planned: it has no experiment yet. See: unwrite systems")
    imports = set(_imported(module))
    families = {name for name in imports if _part(name) in FAMILIES}
    bed = {name for name in imports if _part(name) == "data"} if slug == DEMO else _closure(imports, "beds")
    return {
        "experiment": _hash([module]),
        "method": _hash(families | {*_recorded(slug)}),
        "bed": _hash(bed),
    }


def staleness(slug: str, result: Mapping[str, Any]) -> str | None:
    """Why a stored result is not of today's code, from a clean checkout; None where it is."""
    commit, stored = result.get("commit"), result.get("hashes")
    if commit is None:
        return "outside a checkout"
    if str(commit).endswith("-dirty"):
        return f"dirty checkout {str(commit)[:7]}"
    if not stored:
        return "before hashes were stored"
    changed = [part for part, now in hashes(slug).items() if stored.get(part) != now]
    return f"its {' and '.join(changed)} changed since" if changed else None


@lru_cache(maxsize=1)
def stale() -> dict[str, str]:
    """{system or "demo": why its stored result is to be measured again}."""
    reasons: dict[str, str] = tomllib.loads(files("unwrite").joinpath("reproduce", "stale.toml").read_text("utf-8"))
    return reasons


def marked(slug: str, verdict: str) -> str:
    """A verdict as a table shows it: with a mark where the result is to be measured again."""
    return f"{verdict} {MARK}" if slug in stale() else verdict


def footnote(slugs: Iterable[str]) -> str | None:
    """The line below such a table; None where nothing in it is marked."""
    if not any(slug in stale() for slug in slugs):
        return None
    return f"{MARK} measured with earlier code; to be measured again"


def _recorded(slug: str) -> Iterator[str]:
    """Modules of the catalogue's own entries of a system."""
    for kind in catalog.KINDS:
        if kind is not catalog.SYSTEM:
            yield from (record.entry.split(":")[0] for record in kind.own().values() if record.system == slug)


def _closure(modules: Iterable[str], part: str) -> set[str]:
    """Modules of a part of the package, with all of that part that they import in turn."""
    closure: set[str] = set()
    waiting = [name for name in modules if _part(name) == part]
    while waiting:
        name = waiting.pop()
        if name not in closure:
            closure.add(name)
            waiting += [other for other in _imported(name) if _part(other) == part]
    return closure


def _part(module: str) -> str:
    """ "forget" of "unwrite.forget.npo"."""
    return module.split(".")[1]


@cache
def _imported(module: str) -> tuple[str, ...]:
    """Modules of unwrite that a module imports, also within its functions; a class taken from a package counts as its own module."""
    names: list[str] = []
    for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            home = _absolute(module, node)
            if home.startswith("unwrite."):
                names += [_home(home, alias.name) for alias in node.names]
            elif home == "unwrite":
                names += [f"unwrite.{alias.name}" for alias in node.names]
    return tuple(sorted({name for name in names if name.count(".") >= 1}))


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that an import names."""
    if not node.level:
        return node.module or ""
    package = module if _file(module).name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _home(module: str, name: str) -> str:
    """Where a name that is imported from a module is written: a module of its own, or what a package hands on."""
    if _file(module).name != "__init__.py":
        return module
    if find_spec(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    home = getattr(getattr(import_module(module), name), "__module__", None)
    return home if isinstance(home, str) and home.startswith("unwrite.") else module


def _file(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _hash(modules: Iterable[str]) -> str:
    """Of what modules do, and of the data that lies beside them under their name (`prompts.jsonl` of `prompts`)."""
    content: dict[str, Any] = {}
    for module in sorted({*modules}):
        file = _file(module)
        content[module] = code(file.read_text(encoding="utf-8"))
        for beside in sorted(file.parent.glob(f"{file.stem}[._]*")) if _part(module) == "beds" else ():
            for data in sorted(beside.rglob("*")) if beside.is_dir() else [beside]:
                if data.is_file() and data.suffix not in (".py", ".pyc"):
                    content[str(data.relative_to(file.parent))] = hash_file(data)
    return hash_json(content)


def code(text: str) -> str:
    """The hash of what a module's text does."""
    return hash_json(_shape(ast.parse(text)))


def _shape(node: Any) -> Any:
    """A syntax tree as plain values, the same in every version of Python: what is empty is left out, docstrings too."""
    if isinstance(node, list):
        return [_shape(one) for one in node]
    if isinstance(node, ast.Constant):
        return [type(node.value).__name__, repr(node.value)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    body = fields.get("body")
    if isinstance(body, list) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        fields["body"] = body[1:] if isinstance(body[0].value.value, str) else body
    return [type(node).__name__, {name: _shape(value) for name, value in fields.items()}]
