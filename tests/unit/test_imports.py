"""Imports: the graph of the package has no cycles, and commands import only what they need.

import-linter checks the graph for layers, but not for cycles.
"""

import subprocess
import sys
from graphlib import TopologicalSorter

import grimp
import pytest

DATABASE = {"beanie", "motor", "pydantic", "pymongo", "quartapp.models"}
WEB = {"h2", "hypercorn", "jinja2", "quart", "webauthn", "werkzeug"}
# Each of these takes more than 10 ms to import, or starts a chain of imports that does.
SLOW = {"asyncio", "bcrypt", "cryptography", "email_validator", "httpx", "structlog", "uvloop"}
RUN = """
import sys
from quartapp.cli import main
try:
    main(sys.argv[1:], prog_name="quartapp")
finally:
    print(*sys.modules, file=sys.stderr)
"""


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports that only type checkers see count as well."""
    graph = grimp.build_graph("quartapp")
    imports = {each: graph.find_modules_directly_imported_by(each) for each in graph.modules}
    # Raises CycleError, whose text is the cycle.
    order = list(TopologicalSorter(imports).static_order())
    assert len(order) == len(graph.modules)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["serve", "--help"], ["nonsense"]])
def test_help_and_usage_errors_import_neither_models_nor_libraries(words: list[str]) -> None:
    assert not modules_of(*words) & (DATABASE | WEB | SLOW)


def test_commands_on_users_import_no_web_framework() -> None:
    assert not modules_of("user", "list", "--help") & (WEB | {"email_validator", "httpx"})


def modules_of(*words: str) -> set[str]:
    """Return the names of the modules that a command has imported when it ends."""
    ran = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)
    assert "quartapp.cli" in ran.stderr, ran.stderr
    return set(ran.stderr.split())
