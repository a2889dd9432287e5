"""What a machine can hold of the house's language: docstrings begin with a sentence, and a class name means one thing."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "unwrite"
FILES = sorted(ROOT.rglob("*.py"))
FRAGMENT = re.compile(r"(Args|Returns|Raises):|[a-z_.]+(, [a-z_.]+)*: ")
# Contracts of two families, each with its own page: a score and an edit of a canvas are no score of an audit and no edit of weights.
CONTRACTS = {"Score", "Edit"}


def documented(tree):
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    ]


def test_public_docstrings_begin_with_a_sentence():
    fragments = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in documented(ast.parse(path.read_text(encoding="utf-8")))
        if not node.name.startswith("_") and FRAGMENT.match(ast.get_docstring(node))
    ]
    assert fragments == []


def test_public_class_names_are_of_one_class():
    homes = defaultdict(set)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(path.relative_to(ROOT).as_posix())
    assert {name: sorted(files) for name, files in homes.items() if len(files) > 1 and name not in CONTRACTS} == {}


def test_no_package_keeps_a_list_of_its_names():
    """The catalogue has them; modules that are imported whole may say what `*` means."""
    for path in FILES:
        if path.name == "__init__.py" and "lazily(__name__)" in (text := path.read_text(encoding="utf-8")):
            assert "__all__ =" not in text, path
