"""Writes docs/settings.md: `python -m quartapp.settings.reference docs/settings.md`."""

from __future__ import annotations

import ast
import inspect
import sys
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import humanize
from limits import RateLimitItem
from pydantic.fields import FieldInfo

from quartapp.settings.fields import GROUPS, Group
from quartapp.settings.sources import bounds_of, name_of
from quartapp.settings.values import UNBOUNDED, Doc

INTRODUCTION = """\
# Settings

<!-- Written by python -m quartapp.settings.reference from quartapp/settings/fields.py -->

Settings are read from the environment, or from a file named `.env` in the working directory. The
environment has precedence. A blank value counts as unset. Times are in seconds. A value that
cannot be used stops the start with a message that names the setting. A name that looks like a
misspelt setting is a warning in development, and stops the start in production. SIGHUP makes a
running server read `.env` again.

Rate limits are counted in the database, for all workers together. A rate is written as an amount,
a period and a unit: `5 per 5 minutes`, `60 per hour`, `20 per day`. Failed passwords and codes
are free up to the limit. After that, each further attempt has to wait: one second at first, then
twice as long each time, up to the period of the limit. Successful sign-ins do not count.
"""


def render() -> str:
    """Return the text of docs/settings.md."""
    return "\n".join([INTRODUCTION, *map(_section, GROUPS)])


def _section(group: type[Group]) -> str:
    """Return a heading, the text of the group's docstring, and a table with a row per setting."""
    heading, _, text = inspect.cleandoc(group.__doc__ or "").partition("\n\n")
    described = descriptions(group)
    rows = [
        "| "
        + " | ".join(
            cell.replace("|", r"\|") for cell in _row(name, field, described.get(name, ""))
        )
        + " |"
        for name, field in group.model_fields.items()
    ]
    table = ["| setting | default | accepts | description |", "|---|---|---|---|", *rows, ""]
    return "\n".join([f"## {heading}", "", *([text, ""] if text else []), *table])


def descriptions(group: type[Group]) -> dict[str, str]:
    """Return the text below each field of the group, by the name of the field, without fields that
    have none. Reads the source of the group's class.

    Pydantic could do this for every process that imports the settings, but it would have to parse
    their source each time, which takes 25 ms.
    """
    (declared,) = ast.parse(inspect.getsource(group)).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for field, text in pairwise(declared.body):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                found[name] = inspect.cleandoc(words)
    return found


def _row(name: str, field: FieldInfo, description: str) -> tuple[str, str, str, str]:
    """Return the name, the default, the accepted values and the description of a setting.

    The default and the values that a `Doc` of the field names take precedence over those that
    follow from its type. A name that ends with `_seconds` has the unit "seconds".
    """
    docs = [each for each in field.metadata if isinstance(each, Doc)]
    unit = "seconds" if name.endswith("_seconds") else ""
    default = next((each.default for each in docs if each.default), None)
    takes = next((each.takes for each in docs if each.takes), None)
    return (
        f"`{name_of(name, field)}`",
        default or _default(field.default, unit),
        takes or _takes(field, unit),
        " ".join(description.split()),
    )


def _default(value: Any, unit: str) -> str:
    """Return the default in backquotes, as it is written in the environment, in Markdown.

    Return "none" for None, an empty list and an empty text. A number of seconds from 60 on is
    followed by its duration in parentheses: "`1800` (30 minutes)". `unit` is empty or "seconds".
    """
    if value is None or value == []:
        return "none"
    if isinstance(value, RateLimitItem):
        every = value.multiples if value.multiples > 1 else ""
        period = value.GRANULARITY.name + ("s" if value.multiples > 1 else "")
        return " ".join(f"`{value.amount} per {every} {period}`".split())
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    text = f"`{value}`" if str(value) else "none"
    if unit and value >= 60:
        text += f" ({_duration(value)})"
    return text


def _takes(field: FieldInfo, unit: str) -> str:
    """Return the values that the type of the field accepts, in words.

    The choices of a Literal, "`true` or `false`", "a path", "a rate", or "text" for any other type
    but a number. For a number, its bounds: "1 or more" if its maximum is UNBOUNDED, else "60 to
    3600 seconds" with the `unit`, or "more than 0 to ..." where the lower bound is excluded.
    """
    kinds = {field.annotation, *get_args(field.annotation)} - {NoneType}
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{each}`" for each in get_args(field.annotation))
    if bool in kinds:
        return "`true` or `false`"
    if Path in kinds:
        return "a path"
    if RateLimitItem in kinds:
        return "a rate"
    if not kinds & {int, float}:
        return "text"
    least, above, most = bounds_of(field)
    start = f"{least}" if above is None else f"more than {above}"
    return f"{start} or more" if most == UNBOUNDED else f"{start} to {most} {unit}".rstrip()


def _duration(seconds: int) -> str:
    """Return the duration in the largest of days, hours and minutes of which it is a multiple, such
    as "30 minutes", else in several units, such as "1 minute and 30 seconds"."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {name}{'s' if count > 1 else ''}"
    return humanize.precisedelta(seconds)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), "utf-8")
