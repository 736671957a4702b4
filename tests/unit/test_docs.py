"""The documentation: decision records and their index, links, and names of code in examples."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests import mutate

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ADR = DOCS / "adr"
RECORDS = sorted(ADR.glob("[0-9]*.md"))
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
GUARANTEES = [
    "enforcement",
    "atomicity",
    "exact delivery",
    "race-free admission",
    "durable notifications",
    "fail closed",
    "always an administrator",
    "one account",
    "no enumeration",
    "responsive",
    "no secrets at rest",
    "bounded",
    "no escalation",
    "truthful receipts",
    "tamper evidence",
    "topics need permission",
]
STATUS = re.compile(r"^Status: (accepted|superseded by ADR (\d{4}))\b", re.MULTILINE)


def record_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("path", RECORDS, ids=record_id)
def test_record_has_title_status_date_and_headings(path: Path) -> None:
    text = path.read_text("utf-8")
    number = int(path.name[:4])
    assert re.match(rf"# {number}\. \S", text), f"the title starts with '# {number}. '"
    status = STATUS.search(text)
    assert status, "no line 'Status: accepted' or 'Status: superseded by ADR NNNN'"
    if status[2]:
        assert list(ADR.glob(f"{status[2]}-*.md")), f"there is no record {status[2]}"
    assert re.search(r"^Date: \d{4}-\d\d-\d\d$", text, re.MULTILINE), "no line 'Date: YYYY-MM-DD'"
    headings = re.findall(r"^## (Context|Decision|Consequences)$", text, re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences"]


def test_index_lists_each_record_once_with_title_and_status() -> None:
    expected = set()
    for path in RECORDS:
        text = path.read_text("utf-8")
        title, status = re.match(r"# \d+\. (.+)", text), STATUS.search(text)
        assert title, path.name
        assert status, path.name
        expected.add(f"| [{path.name[:4]}]({path.name}) | {title[1]} | {status[1]} |")
    lines = (ADR / "README.md").read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| [")]
    assert set(rows) == expected
    assert len(rows) == len(expected)


def test_index_of_the_docs_links_each_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text("utf-8")))
    assert linked == {path.name for path in DOCS.glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("path", PAGES, ids=record_id)
def test_links_between_pages_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_tests_named_in_the_docs_exist() -> None:
    for path in PAGES:
        for name in re.findall(r"\btests/[\w/]+\.(?:py|toml)\b", path.read_text("utf-8")):
            assert (ROOT / name).exists(), f"{record_id(path)} names {name}"


def test_functions_named_in_the_docs_exist() -> None:
    for path in PAGES:
        for name, test in re.findall(r"\b(tests/[\w/]+\.py)::(\w+)", path.read_text("utf-8")):
            code = (ROOT / name).read_text("utf-8")
            assert f"def {test}(" in code, f"{record_id(path)} names {name}::{test}"


def test_each_guarantee_is_listed_and_each_of_its_tests_has_a_mutation() -> None:
    named = mutate.tests_by_row(mutate.GUARANTEES)
    assert list(named) == GUARANTEES
    mutated = {pair for mutation in mutate.mutations() for pair in mutation.pairs}
    pairs = {(row, test) for row, tests in named.items() for test in tests}
    assert pairs - mutated == set(), "write entries for these into tests/mutations.toml"


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_code_named_for_a_guarantee_exists(guarantee: str) -> None:
    text = mutate.GUARANTEES.read_text("utf-8")
    row = re.search(rf"^\| {guarantee} \|[^|]+\|([^|]+)\|", text, re.MULTILINE)
    assert row
    names = set(re.findall(r"`([\w/.]+)`", row[1]))
    files = {name for name in names if name.endswith(".py")}
    code = "".join((ROOT / "quartapp" / file).read_text("utf-8") for file in files)
    for name in names - files:
        for part in name.split("."):
            assert re.search(rf"\b(?:def|class) {part}\b", code), f"{name} is in none of {files}"


def test_faults_page_names_tests_that_exist() -> None:
    text = (DOCS / "reliability.md").read_text("utf-8")
    names = set(re.findall(r"`((?:\w+/)*test_\w+)`", text))
    assert len(names) > 20
    assert {name for name in names if not (ROOT / "tests" / f"{name}.py").exists()} == set()


def test_examples_import_names_that_exist() -> None:
    imported = set()
    for code in python_examples():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quartapp"):
                imported |= {(str(node.module), alias.name) for alias in node.names}
    assert len(imported) > 20
    missing = {f"{module}.{name}" for module, name in imported if not exists(module, name)}
    assert missing == set(), "correct the imports in docs/extending.md"


def exists(module: str, name: str) -> bool:
    """Whether `from module import name` works."""
    try:
        found = importlib.import_module(module)
        return hasattr(found, name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False
