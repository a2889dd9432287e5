"""Every place where ours differs from official code has a test that runs, named beside it in docs/corrections.md."""

import ast
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    line
    for line in (TESTS.parent / "docs" / "corrections.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| **")
]


@cache
def functions(file):
    """{test: whether it runs in `make test`} of all files of this name, or of the one at this place."""
    found = {}
    for path in [TESTS.parent / file] if "/" in file else TESTS.rglob(file):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = [ast.unparse(one) for one in node.decorator_list]
                found[node.name] = not any(re.search(r"mark\.(slow|gpu|net|skip\b)", mark) for mark in marks)
    return found


def named(row):
    """(file, pattern of the function's name) of every test that a row names; "..." and "*" stand for what is left out."""
    found, file = [], None
    for text in re.findall(r"`([^`]*)`", re.split(r"(?<!\\)\|", row)[3]):
        place, _, function = text.partition("::")
        file = place or file
        found.append((file, function.replace("...", "*")))
    return found


def title(row):
    return re.match(r"\| \*\*(.*?)\*\*", row)[1].replace("`", "")


def test_all_corrections_are_looked_at():
    assert len(ROWS) >= 70
    assert len({title(row) for row in ROWS}) > 65


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_a_correction_has_a_test_that_runs(row):
    tests = named(row)
    assert tests
    for file, pattern in tests:
        assert pattern, f"{file}: name the test, not only its file"
        known = functions(file)
        hits = [name for name in known if fnmatch(name, pattern)]
        assert hits, f"{file} has no {pattern}"
        assert any(known[name] for name in hits), f"{file}::{pattern} is left out of make test"
