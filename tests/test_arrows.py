"""What may import what inside a family: no module in a circle, and no method file another one.

import-linter holds the arrows between packages. Imports inside functions count as any others; those for type checkers
alone bind nothing when the program runs, and only the rule for method files looks at them.
"""

from __future__ import annotations

from functools import cache

import grimp
import pytest

from unwrite import catalog

WITHOUT_CIRCLES = ["decode", "forget", "shield"]
RECORDS = {
    "defence": catalog.defences,
    "method": catalog.methods,
    "shield": catalog.shields,
    "strategy": catalog.strategies,
}  # parts join when theirs import none


@cache
def imports(typing: bool = False) -> dict[str, frozenset[str]]:
    """What each module of the package imports, by name; with `typing`, for type checkers too."""
    graph = grimp.build_graph("unwrite", exclude_type_checking_imports=not typing, cache_dir=None)
    return {module: frozenset(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def circles(of: dict[str, frozenset[str]]) -> list[list[str]]:
    """The groups of modules of which each reaches every other (Tarjan's strongly connected components of two and more)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(of[module] & of.keys()):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[len(stack) - len(group) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in sorted(of):
        if module not in order:
            visit(module)
    return groups


@pytest.mark.parametrize("family", WITHOUT_CIRCLES)
def test_no_module_of_a_family_is_in_an_import_circle(family):
    inside = {module: others for module, others in imports().items() if f"{module}.".startswith(f"unwrite.{family}.")}
    assert len(inside) > 8
    assert circles(inside) == []


@pytest.mark.parametrize("kind", RECORDS)
def test_a_method_file_imports_no_method_file(kind):
    files = {record.entry.split(":")[0] for record in RECORDS[kind]().values()}
    both = {file: sorted(imports(typing=True)[file] & files) for file in files}
    assert {file: others for file, others in both.items() if others} == {}


def test_a_circle_is_found_whatever_hangs_on_it():
    of = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"d", "f"}, "f": set(), "g": {"a", "elsewhere"}}
    assert circles({module: frozenset(others) for module, others in of.items()}) == [["d", "e"], ["b", "c"]]
