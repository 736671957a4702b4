"""Texts that people read come from the catalogs: no template, script or error has its own."""

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from jinja2 import nodes

import quartapp
from quartapp.i18n import templates

PACKAGE = Path(quartapp.__file__).parent
TEMPLATES = sorted((PACKAGE / "templates").rglob("*.html"))
# Only developers see the page of all components, which is full of made-up names.
SAMPLES = {"dev/components.html"}
# Attributes that people read or hear.
SHOWN = {"alt", "aria-label", "aria-description", "data-label", "placeholder", "title"}
# Commands are the same in all languages.
COMMANDS = {"quartapp user create USERNAME EMAIL --role admin"}
KEYWORDS = {"username webauthn", "light dark"}
LETTERS = re.compile(r"[A-Za-z]{2}")
WORDS = re.compile(r"^[A-Z][a-z]|[a-z][.,:]? \w")

ENVIRONMENT = jinja2.Environment(autoescape=True)
templates.install(ENVIRONMENT)
# What Jinja replaces, and blocks that are part of a tag.
DYNAMIC = re.compile(
    r"\{#.*?#\}|\{%-?\s*trans\b.*?\bendtrans\s*-?%\}"
    r"|\{%-?\s*block (?:here|main_class|main_attributes)\b.*?endblock\s*-?%\}"
    r"|\{%.*?%\}|\{\{.*?\}\}",
    re.DOTALL,
)
# What a macro writes into a tag.
ATTRIBUTES = re.compile(r"(?:[a-z]+-[a-z]+(?:=\"[\w ]*\")?\s*)+")


class Texts(HTMLParser):
    """Collects the texts of a page and of the attributes that people read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        self.found.append(data.strip())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in SHOWN and value]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE / "templates").as_posix()


def untranslated_constants(node: nodes.Node) -> Iterator[str]:
    """Yield the strings in expressions, such as arguments of macros, that are not arguments of a
    translating function."""
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
        texts = {"_": 1, "gettext": 1, "ngettext": 2}.get(node.node.name, 0)
        children = [*node.args[texts:], *node.kwargs]
    else:
        children = list(node.iter_child_nodes())
    if isinstance(node, nodes.Const) and isinstance(node.value, str) and WORDS.search(node.value):
        yield node.value
    for child in children:
        yield from untranslated_constants(child)


@pytest.mark.parametrize("path", TEMPLATES, ids=name_of)
def test_template_has_no_text_outside_the_catalogs(path: Path) -> None:
    if name_of(path) in SAMPLES:
        return
    source = path.read_text("utf-8")
    texts = Texts(DYNAMIC.sub(" ", source)).found
    words = {text for text in texts if LETTERS.search(text) and not ATTRIBUTES.fullmatch(text)}
    assert words - COMMANDS == set()
    assert set(untranslated_constants(ENVIRONMENT.parse(source))) - KEYWORDS == set()


# The first argument of these is a text.
TAKE_TEXTS = {
    *("flash", "flash_receipt", "refuse", "Invalid", "ValidationError", "DataRequired"),
    *("InputRequired", "StringField", "PasswordField", "TextAreaField", "EmailField"),
    *("BooleanField", "RadioField", "SelectField", "SelectMultipleField", "SubmitField"),
}
KEYWORD_TEXTS = {"description", "message", "text", "subject", "sentence"}
# Rooms whose texts people read in pages and emails. The command line is English.
ROOMS = ("activities", "auth", "email", "forms", "models", "routes", "security")
SOURCES = sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))


def is_plain_text(node: ast.expr) -> bool:
    """Return whether the expression is a string with words, or is put together from some."""
    if isinstance(node, ast.JoinedStr):
        parts = [each.value for each in node.values if isinstance(each, ast.Constant)]
        return any(WORDS.search(str(part)) for part in parts)
    if isinstance(node, ast.Tuple):
        return any(is_plain_text(each) for each in node.elts)
    return isinstance(node, ast.Constant) and bool(WORDS.search(str(node.value)))


def untranslated(tree: ast.Module) -> Iterator[str]:
    """Yield the plain strings that are passed as a text or raised as an error of the models."""
    errors = {
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base) in ("DomainError", "RetryLater") for base in node.bases)
    }
    raised = {call for error in errors for call in ast.walk(error) if isinstance(call, ast.Call)}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func).rpartition(".")[2]
        takes_text = name in TAKE_TEXTS or (name == "__init__" and call in raised)
        if takes_text and call.args and is_plain_text(call.args[0]):
            yield ast.unparse(call)
        for keyword in call.keywords:
            if keyword.arg in KEYWORD_TEXTS and is_plain_text(keyword.value):
                yield ast.unparse(keyword)


PROSE = re.compile(r"^[A-Z][a-z]+ [a-z]+.*[.?!:]$|^[A-Z][a-z]+ [a-z]+ [a-z]+ ", re.DOTALL)
DEFECTS = ("TypeError", "ValueError", "RuntimeError", "VerificationFailed")


def sentences_in(tree: ast.Module) -> Iterator[str]:
    """Yield the strings that are sentences, without docstrings, messages of defects, and texts that
    are passed to a translating function."""
    known: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            known.add(node.value)
        translated = isinstance(node, ast.Call) and ast.unparse(node.func) in TRANSLATE
        defect = isinstance(node, ast.Raise) and ast.unparse(node).startswith(RAISED)
        if translated or defect or isinstance(node, ast.Assert):
            known |= set(ast.walk(node))
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and node not in known else None
        if isinstance(text, str) and PROSE.search(text):
            yield text


TRANSLATE = {"_", "gettext", "lazy_gettext", "ngettext", "lazy_ngettext"}
RAISED = tuple(f"raise {name}(" for name in DEFECTS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_code_has_no_text_outside_the_catalogs(path: Path) -> None:
    if path.name == "dev_components.py":
        return
    tree = ast.parse(path.read_text("utf-8"))
    assert list(untranslated(tree)) == []
    assert list(sentences_in(tree)) == []


SCRIPTS = sorted((PACKAGE / "static").glob("*.js"))
STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"|`([^`]*)`')
SENTENCE = re.compile(r"^[A-Z][a-z]+\W|[a-z] [a-z]+ ")


def sentences(code: str) -> list[str]:
    """Return the strings and templates of a script that look like texts."""
    code = re.sub(r"(?m)^\s*//.*$|\s// .*$", "", code)
    strings = (match[1] or match[2] or "" for match in STRING.finditer(code))
    return [each for each in strings if SENTENCE.search(each)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_has_no_text_of_its_own(path: Path) -> None:
    assert sentences(path.read_text("utf-8")) == []


def test_texts_outside_the_catalogs_are_found() -> None:
    html = "<p>{% trans %}In{% endtrans %} Outside</p><a title='Also'>{{ _('In') }}</a>"
    assert [text for text in Texts(DYNAMIC.sub(" ", html)).found if text] == ["Outside", "Also"]
    template = ENVIRONMENT.parse('{{ field(_("In"), "Outside", kind="x") }}')
    assert list(untranslated_constants(template)) == ["Outside"]
    code = 'class Gone(DomainError):\n def __init__(self): super().__init__(f"The {x} is")\n'
    assert len(list(untranslated(ast.parse(f'{code}\nflash("Done."); flash(_("In"))')))) == 2
    assert list(sentences_in(ast.parse('x = {1: f"Your account is {x}."}'))) == ["Your account is "]
    assert sentences('toast("Not translated.") // "Comment of it"') == ["Not translated."]
