"""What imports what among the samplers: no circle, and no method's file needs another method's."""

import grimp
import pytest

FAMILY = "unwrite.diffusion"
SHARED = {f"{FAMILY}.parts.rules", f"{FAMILY}.parts.proposing"}  # the loop's own vocabulary


@pytest.fixture(scope="module")
def graph():
    """Every import that runs, also those within functions."""
    return grimp.build_graph("unwrite", exclude_type_checking_imports=True, cache_dir=None)


def members(graph):
    return {module for module in graph.modules if module == FAMILY or module.startswith(FAMILY + ".")}


def test_no_module_of_the_family_imports_itself_by_way_of_others(graph):
    circles = {module for module in members(graph) if module in graph.find_upstream_modules(module)}
    for module in members(graph) - circles:
        if graph.find_upstream_modules(module) & graph.find_downstream_modules(module):
            circles.add(module)
    assert not circles


def test_methods_import_no_file_of_another_method(graph):
    prefix = f"{FAMILY}.parts."
    methods = {module for module in members(graph) if module.startswith(prefix)}
    assert len(methods) > 6
    for module in methods:
        own = module.removeprefix(prefix).split(".")[0]
        others = graph.find_modules_directly_imported_by(module) & methods - SHARED
        assert {other for other in others if other.removeprefix(prefix).split(".")[0] != own} == set(), module


def test_the_loop_knows_no_part(graph):
    for name in ("base", "loop", "memory", "trace"):
        imported = graph.find_modules_directly_imported_by(f"{FAMILY}.{name}")
        assert not {module for module in imported if module.startswith(f"{FAMILY}.parts")}
