"""The arrows within decode that no other family has: the engine below the strategies, and its folders in one order."""

import grimp
import pytest

PACKAGE = "unwrite.decode"


@pytest.fixture(scope="module")
def imports():
    """{module: the modules of decode that it imports when it or one of its functions runs}."""
    graph = grimp.build_graph("unwrite", exclude_type_checking_imports=True, cache_dir=None)
    modules = {name for name in graph.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")}
    return {name: graph.find_modules_directly_imported_by(name) & modules for name in modules}


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
