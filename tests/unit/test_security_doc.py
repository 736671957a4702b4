"""docs/security.md is correct: its tests exist, and its tables match the code."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import humanize
import wtforms
from limits import RateLimitItem
from wtforms import validators

from quartapp import forms
from quartapp.forms.base import Checked, Form, bidi_free, digits, printable, tidy
from quartapp.policy import BUILT_IN_ROLES
from quartapp.security import password_policy
from quartapp.settings import Settings
from tests import mutate
from tests.integration.routes.permission_matrix import TABLE

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/security.md").read_text("utf-8")
# The number of requirements in each section of ASVS 5.0, of the chapters answered in full.
SECTIONS = """
2.1:3 2.2:3 2.3:5 2.4:2
3.1:1 3.2:3 3.3:5 3.4:8 3.5:8 3.6:1 3.7:5
4.4:4
6.1:3 6.2:12 6.3:8 6.4:6 6.5:8 6.6:4 6.7:2 6.8:4
7.1:3 7.2:4 7.3:2 7.4:5 7.5:3 7.6:2
8.1:4 8.2:4 8.3:3 8.4:2
"""
LEVELS = {"info", "warning", "error"}
STATES = {"met", "partly", "not met", "n/a"}
CRYPTOGRAPHY = {"hashlib", "hmac", "secrets", "bcrypt", "itsdangerous", "cryptography", "pyotp"}
CRYPTOGRAPHY |= {"webauthn"}


def section(title: str) -> str:
    """Return the text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", DOC, re.MULTILINE | re.DOTALL)
    assert found, f"docs/security.md has no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of its tables, without their header rows."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    heads = {number for number, cells in enumerate(table) if cells[0].startswith("---")}
    return [cells for number, cells in enumerate(table) if not {number, number + 1} & heads]


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "quartapp").rglob("*.py")):
        yield path.relative_to(ROOT / "quartapp").as_posix(), ast.parse(path.read_text("utf-8"))


# ---- the requirements


def requirements() -> list[list[str]]:
    answers = DOC.partition("## The requirements")[2]
    return [row for row in rows(answers) if re.fullmatch(r"\d+\.\d+\.\d+", row[0])]


def test_each_requirement_is_answered_once() -> None:
    counts = [part.split(":") for part in SECTIONS.split()]
    asked = {f"{part}.{n + 1}" for part, count in counts for n in range(int(count))}
    answered = Counter(row[0] for row in requirements())
    assert asked - set(answered) == set()
    assert [number for number, times in answered.items() if times > 1] == []


def test_each_answer_has_a_level_a_state_and_evidence() -> None:
    for number, level, state, *said in requirements():
        assert level in "123", number
        assert state in STATES, number
        assert len(said) == 3, number
        assert all(said), number
        if state == "met":
            assert re.search(r"::test_|by reading|\]\(#", said[2]), number


def test_unmet_requirements_are_listed_at_the_beginning() -> None:
    said = set(re.findall(r"\b\d+\.\d+\.\d+\b", section("What is not met")))
    missing = {row[0] for row in requirements() if row[2] in ("not met", "partly")}
    assert said == missing


def test_each_named_test_exists() -> None:
    known = {
        f"{path.relative_to(ROOT).as_posix()}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert set(re.findall(r"tests/[\w/]+\.py::\w+", DOC)) - known == set()


def test_each_link_within_the_page_has_a_target() -> None:
    titles = re.findall(r"^#+ (.+)$", DOC, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", DOC)) - anchors == set()
    for path in re.findall(r"\]\(([^#)][^)]*)\)", DOC):
        assert (ROOT / "docs" / path).exists(), path


# ---- the tables


def fields() -> set[tuple[str, str]]:
    """Return the rules of each form field, in words."""
    found = set()
    for module in pkgutil.iter_modules(forms.__path__, f"{forms.__name__}."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            if not (isinstance(kind, type) and issubclass(kind, Form)) or kind is Form:
                continue
            if kind.__module__ == module.name:
                found |= {
                    (f"{name}.{field.name}", ", ".join(rule(field, kind))) for field in kind()
                }
    return found


def rule(field: Any, form: type[Form]) -> Iterator[str]:
    yield field.type.removesuffix("Field").lower()
    checks = field.validators
    required = (validators.DataRequired, validators.InputRequired)
    yield "required" if any(isinstance(check, required) for check in checks) else "optional"
    for check in checks:
        if isinstance(check, validators.Length):
            yield f"at most {check.max:,}"
        elif isinstance(check, validators.Regexp):
            yield f"`{check.regex.pattern}`"
        elif isinstance(check, validators.EqualTo):
            yield f"equal to {check.fieldname}"
        elif check is printable:
            yield "printable"
        elif check is bidi_free:
            yield "one direction"
        elif isinstance(check, Checked):
            yield f"`{check.check.__name__}`"
        else:
            assert isinstance(check, (*required, validators.Optional)), (
                f"say in tests/unit/test_security_doc.py what {check} is"
            )
    yield from (
        word for way, word in ((tidy, "trimmed"), (digits, "ungrouped")) if way in field.filters
    )
    if isinstance(field, wtforms.SelectMultipleField):
        yield "any of those offered"
    elif isinstance(field, wtforms.SelectField):
        yield "one of those offered"
    if hasattr(form, f"validate_{field.name}"):
        yield f"`validate_{field.name}`"


def test_documented_field_rules_match_the_forms() -> None:
    said = {(row[0].strip("`"), row[1]) for row in rows(section("Input rules")) if "." in row[0]}
    missing = "\n".join(f"| `{name}` | {what} |" for name, what in sorted(fields() - said))
    assert said == fields(), f"write into docs/security.md, 'Input rules':\n{missing}"


def test_documented_limits_match_the_code() -> None:
    settings = {name.upper(): field.default for name, field in Settings.model_fields.items()}
    limits = r"LIMIT_|_PER_|SOCKETS_|AT_ONCE|_QUEUE|SESSION_|REMEMBERED_|FRESH_|LIVE_|GRACE_"
    named = set()
    for name, value, *_ in rows(section("Limits")):
        name = name.strip("`")
        named.add(name)
        found = settings[name] if name.isupper() else _value(name)
        assert value == _words(found, name), f"{name} is {_words(found, name)}"
    missing = {name for name in settings if re.search(limits, name)} - named
    assert missing == set(), "limits that docs/security.md does not explain"


def _value(name: str) -> Any:
    """Return the value of `package.module.NAME` in quartapp."""
    module, _, constant = name.rpartition(".")
    return getattr(importlib.import_module(f"quartapp.{module}"), constant)


def _words(value: Any, name: str) -> str:
    if isinstance(value, RateLimitItem):
        every = value.multiples if value.multiples > 1 else ""
        unit = value.GRANULARITY.name + ("s" if value.multiples > 1 else "")
        return " ".join(f"{value.amount} per {every} {unit}".split())
    if name.endswith("_SECONDS") and isinstance(value, int | float):
        value = timedelta(seconds=value)
    if isinstance(value, timedelta):
        if value.days > 1:
            return f"{value.days} days"
        return humanize.precisedelta(value, format="%d")
    return f"{value:,}"


def test_documented_context_words_match_the_code() -> None:
    said = re.search(r"^Words of the context: (.+)\.$", section("Passwords"), re.MULTILINE)
    assert said
    assert re.findall(r"`([^`]+)`", said[1]) == list(password_policy.CONTEXT_WORDS)


def test_documented_permissions_match_the_tested_matrix() -> None:
    shown = re.search(r"```\n(.*?)```", section("Who may do what"), re.DOTALL)
    assert shown
    table = {" ".join(line.split()) for line in TABLE.splitlines()}
    lines = {" ".join(line.split()) for line in shown[1].splitlines()}
    assert lines - {""} == table - {""}, "copy the table of permission_matrix.py"
    held = {
        row[0].strip("`"): set(re.findall(r"`([^`]+)`", row[1])) for row in rows(section("Roles"))
    }
    assert held == {name: {p.value for p in given} for name, (_, given) in BUILT_IN_ROLES.items()}


def test_the_inventory_of_cryptography_has_each_module_using_it() -> None:
    using = set()
    for path, tree in sources():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & CRYPTOGRAPHY:
                using.add(path)
    said = {
        path
        for row in rows(section("What is computed"))
        for path in re.findall(r"`([\w/]+\.py)`", row[-1])
    }
    assert said == using


def test_the_inventory_of_the_log_has_each_event() -> None:
    logged, words = set(), set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                level = {"exception": "error"}.get(node.func.attr, node.func.attr)
                name = node.args[0]
                if level in LEVELS and isinstance(name, ast.Constant):
                    logged.add((str(name.value), level))
    said = {
        (name, row[1])
        for row in rows(section("What is logged"))
        for name in re.findall(r"`([a-z_]+)`", row[0])
    }
    logged = {(name, level) for name, level in logged if re.fullmatch("[a-z_]+", name)}
    assert logged - said == set(), "write these into docs/security.md, 'What is logged'"
    assert {name for name, _ in said} - words == set(), "these are not logged any more"


# ---- the mutations


def test_each_mutation_changes_a_text_that_occurs_once() -> None:
    wrong = {}
    for edit in {edit for mutation in mutate.mutations() for edit in mutation.edits}:
        times = (ROOT / edit.file).read_text("utf-8").count(edit.find)
        if times != 1:
            wrong[edit.file, edit.find] = times
    assert wrong == {}, "repair these in tests/mutations.toml"


def test_each_test_of_a_requirement_has_a_mutation() -> None:
    kept = {row[0] for row in requirements() if row[2] in ("met", "partly")}
    named = {(row, test) for row, tests in mutate.tests_by_row().items() for test in tests}
    mutated = {pair for mutation in mutate.mutations() for pair in mutation.pairs}
    missing = {(row, test) for row, test in named if row in kept} - mutated
    assert missing == set(), "write entries for these into tests/mutations.toml"
