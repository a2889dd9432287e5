"""The arrows within decode: no circle, the engine below the strategies, and no strategy that knows another."""

import importlib

import grimp
import pytest

from unwrite.decode import Strategy

PACKAGE = "unwrite.decode"


@pytest.fixture(scope="module")
def imports():
    """{module: the modules of decode that it imports when it or one of its functions runs}."""
    graph = grimp.build_graph("unwrite", exclude_type_checking_imports=True, cache_dir=None)
    modules = {name for name in graph.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")}
    return {name: graph.find_modules_directly_imported_by(name) & modules for name in modules}


def reachable(imports, start):
    """All modules that importing one brings, step by step."""
    seen, waiting = set(), [start]
    while waiting:
        for name in imports[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def is_strategy(value):
    return isinstance(value, type) and issubclass(value, Strategy) and value is not Strategy


def test_no_module_imports_itself_by_way_of_others(imports):
    assert [name for name in sorted(imports) if name in reachable(imports, name)] == []


def test_the_folders_of_the_engine_import_one_another_in_one_direction(imports):
    folders = [f"{PACKAGE}.engine.{name}" for name in ("planning", "transformers", "llamacpp")]
    inside = {folder: {name for name in imports if name.startswith(folder)} for folder in folders}
    assert all(inside.values())
    pairs = {
        (one.rsplit(".")[-1], other.rsplit(".")[-1])
        for one in folders
        for other in folders
        if one != other and any(imports[name] & inside[other] for name in inside[one])
    }
    assert pairs == {("transformers", "planning"), ("llamacpp", "planning")}


def test_the_engine_imports_no_strategy_and_nothing_of_drafting_with_a_model(imports):
    engine = {name for name in imports if name.startswith(f"{PACKAGE}.engine")}
    assert {other for name in engine for other in imports[name]} <= engine


def test_no_strategy_imports_another(imports):
    direct = [name for name in imports if name.count(".") == PACKAGE.count(".") + 1 and name != Strategy.__module__]
    strategies = {name for name in direct if any(map(is_strategy, vars(importlib.import_module(name)).values()))}
    assert {f"{PACKAGE}.{name}" for name in ("aded", "draft_model", "joined", "plain", "rsd")} <= strategies
    assert {name: imports[name] & strategies for name in strategies if imports[name] & strategies} == {}
