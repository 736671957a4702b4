"""The import graph of the package, which import-linter checks for layers but not for cycles."""

from graphlib import TopologicalSorter

import grimp


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports that only type checkers see count as well."""
    graph = grimp.build_graph("quartapp")
    imports = {each: graph.find_modules_directly_imported_by(each) for each in graph.modules}
    # Raises CycleError, whose text is the cycle.
    order = list(TopologicalSorter(imports).static_order())
    assert len(order) == len(graph.modules)
