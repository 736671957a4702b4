"""Templates are found by name, which no type checker looks at."""

import re
from pathlib import Path

import quartapp

PACKAGE = Path(quartapp.__file__).parent
FOLDER = PACKAGE / "templates"
NAMED = re.compile(r"""["']([\w/]+\.html)["']""")


def named() -> set[str]:
    """The names of templates in the code and in the templates themselves."""
    files = [*PACKAGE.rglob("*.py"), *FOLDER.rglob("*.html")]
    return {name for file in files for name in NAMED.findall(file.read_text())}


def test_named_templates_are_those_that_exist() -> None:
    existing = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.html")}
    assert named() == existing
