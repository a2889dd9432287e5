"""The page on what can be relied on names tests that exist, and the commands that run them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = re.findall(r"^\| .+ \| `(\S+?\.py)::(test_\w+)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_the_page_names_is_there(file):
    tree = ast.parse((ROOT / "tests" / file).read_text())
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {name for of, name in NAMED if of == file} <= there


def test_every_line_of_the_tables_names_a_test():
    tables = PAGE.split("## Which test holds what")[1]
    lines = [line for line in tables.splitlines() if line.startswith("| ") and "what holds" not in line]
    assert len(lines) == len(NAMED) > 80
    assert len(set(lines)) == len(lines)


def test_its_commands_are_there():
    targets = re.findall(r"^([\w-]+)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)`", PAGE)) <= set(targets)
    for command in re.findall(r"`python (?:-m )?(tests\S+)", PAGE):
        assert (ROOT / f"{command.removesuffix('.py').replace('.', '/')}.py").exists()
