"""The docstrings of quartapp: the exceptions, classes and functions that they name exist."""

import ast
import builtins
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from quartapp.policy import Permission
from quartapp.ws import protocol

PACKAGE = Path(__file__).parents[2] / "quartapp"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A class name, but no constant (MAX_BYTES) and no abbreviation (HTTP).
CLASS = r"[A-Z][a-z]+(?:[A-Z][a-z]+)*"
RAISES = re.compile(rf"\b[Rr]aises? ({CLASS}\b(?:(?:,? and |,? or |, ){CLASS}\b)*)")
REFERENCE = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\([^`]*\))?`")
# Texts with a dot that are no names in Python: permissions and the types of messages.
TEXTS = {str(each) for each in Permission} | {
    each.TYPE for each in vars(protocol).values() if isinstance(getattr(each, "TYPE", None), str)
}
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def members() -> dict[str, set[str]]:
    """Return the names in each module, package and class of quartapp, by the last part of its name.

    Modules or classes with the same name share their names. Classes have those of their bases too.
    """
    found: dict[str, set[str]] = defaultdict(set)
    bases: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        package = path.parent.name
        found[path.parent.parent.name].add(package)
        found[package].add(path.stem)
        _add_names(parsed(path), package if path.stem == "__init__" else path.stem, found, bases)
    grown = True
    while grown:
        before = sum(map(len, found.values()))
        for name in bases:
            found[name].update(*(found.get(base, ()) for base in bases[name]))
        grown = sum(map(len, found.values())) > before
    return dict(found)


def _add_names(
    node: ast.AST, owner: str, found: dict[str, set[str]], bases: dict[str, set[str]]
) -> None:
    """Add what is defined or imported below the node, and the attributes of `self`. What stands in
    a function counts for the class or module around it."""
    for child in ast.iter_child_nodes(node):
        inner = owner
        match child:
            case ast.ClassDef():
                found[owner].add(child.name)
                inner = child.name
                bases[inner].update(
                    re.sub(r"\[.*|.*\.", "", ast.unparse(each)) for each in child.bases
                )
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found[owner].add(child.name)
            case ast.alias():
                found[owner].add(child.asname or child.name.split(".")[0])
            case ast.Name(ctx=ast.Store()):
                found[owner].add(child.id)
            case ast.Attribute(value=ast.Name(id="self")):
                found[owner].add(child.attr)
        _add_names(child, inner, found, bases)


@cache
def names() -> set[str]:
    return set(dir(builtins)).union(*members().values())


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring, on one line, of everything in the module that has one."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, Definition) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", path.stem), " ".join(text.split())


def exists(reference: str) -> bool:
    """Return whether a class, or an attribute of a class or module of quartapp, exists.

    True for references that begin with something else, such as a local variable. `event.verb` may
    be an attribute of the module `event` or of the class `Event`.
    """
    parts = reference.split(".")
    if reference in TEXTS:
        return True
    if re.fullmatch(CLASS, parts[0]):
        if parts[0] not in names():
            return False
    elif parts[0] not in members():
        return True
    known = ((one, other) for one, other in pairwise(parts) if one in members())
    return all(
        other in members()[one] or other in members().get(one.title().replace("_", ""), ())
        for one, other in known
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_docstrings_name_only_exceptions_and_code_that_exist(path: Path) -> None:
    missing = [
        f"{owner}: {name}"
        for owner, text in docstrings(path)
        for name in (
            *(each for m in RAISES.finditer(text) for each in re.findall(CLASS, m[1])),
            *REFERENCE.findall(text),
        )
        if not exists(name)
    ]
    assert not missing


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("ForwardedHeaders", True),
        ("ForwardedHeaders._trusted", True),
        ("rate_limits.attempt", True),
        ("Busy.retry_after", True),
        ("navigator.credentials.get", True),
        ("NoSuchClass", False),
        ("ForwardedHeaders.no_such_method", False),
        ("rate_limits.no_such_function", False),
    ],
)
def test_reference_to_missing_code_is_found(reference: str, expected: bool) -> None:
    assert exists(reference) is expected
