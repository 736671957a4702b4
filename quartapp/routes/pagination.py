"""Pagination with cursors. A query for one row more than a page tells whether there is another."""

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar
from urllib.parse import urlencode

from beanie import PydanticObjectId
from bson.errors import InvalidId
from quart import abort, request

from quartapp import clock

T = TypeVar("T")


def cut(rows: list[T], size: int, cursor: Callable[[T], object]) -> tuple[list[T], str | None]:
    """Return the first `size` rows, and the URL of the next page, or None without more rows.

    The URL is that of this request with `after` set to the cursor of the last row of this page.
    """
    if len(rows) <= size:
        return rows, None
    shown = rows[:size]
    return shown, next_page(str(cursor(shown[-1])))


def next_page(cursor: str) -> str:
    """Return the URL of this request with `after` set to the cursor."""
    others = {key: value for key, value in request.args.items() if key != "after"}
    return f"{request.path}?{urlencode({**others, 'after': cursor})}"


def id_or_404(text: str) -> PydanticObjectId:
    """Return the text as an id. Answers 404 if it is not one."""
    try:
        return PydanticObjectId(text)
    except InvalidId:
        abort(404)


def id_after() -> PydanticObjectId | None:
    """Return the parameter `after` as the id after which a page starts; None if it is missing or is
    no id."""
    return id_parameter("after")


def id_parameter(name: str) -> PydanticObjectId | None:
    """Return a parameter of the query as an id; None if it is missing or is no id."""
    return parse_id(request.args.get(name))


def parse_id(text: str | None) -> PydanticObjectId | None:
    """Return the text as an id; None if it is missing or is no id."""
    return PydanticObjectId(text) if text and PydanticObjectId.is_valid(text) else None


def moment_and_id_after() -> tuple[datetime, PydanticObjectId] | None:
    """Return the parameter `after`, written as `<time>_<id>`, as the time and id after which a page
    starts; None if it is missing or invalid. The time is in UTC."""
    moment, _, last = request.args.get("after", "").partition("_")
    try:
        at = clock.from_iso(moment)
    except ValueError:
        return None
    found = parse_id(last)
    return (at, found) if found else None
