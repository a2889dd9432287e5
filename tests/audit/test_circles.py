"""The audit's modules import each other in one direction."""

from __future__ import annotations

import grimp


def test_no_module_of_the_audit_imports_itself_through_others() -> None:
    """Imports inside functions count; those for type checkers alone don't."""
    graph = grimp.build_graph("unwrite", exclude_type_checking_imports=True, cache_dir=None)
    modules = {name for name in graph.modules if name.startswith("unwrite.audit.")}
    while free := {name for name in modules if not graph.find_modules_directly_imported_by(name) & modules}:
        modules -= free
    assert not modules
