"""Lists that go on: one row more than a page says whether there is another."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlencode

from beanie import PydanticObjectId
from bson.errors import InvalidId
from quart import abort, request

T = TypeVar("T")


def cut(rows: list[T], size: int, cursor: Callable[[T], object]) -> tuple[list[T], str | None]:
    """The rows of this page, and where the next one begins, as a link; None at the end."""
    if len(rows) <= size:
        return rows, None
    shown = rows[:size]
    others = {key: value for key, value in request.args.items() if key != "after"}
    return shown, f"{request.path}?{urlencode({**others, 'after': str(cursor(shown[-1]))})}"


def id_or_404(text: str) -> PydanticObjectId:
    try:
        return PydanticObjectId(text)
    except InvalidId:
        abort(404)


def id_after() -> PydanticObjectId | None:
    """The cursor of a list by ids; one that is none begins at the beginning."""
    text = request.args.get("after", "")
    return PydanticObjectId(text) if PydanticObjectId.is_valid(text) else None


def moment_and_id_after() -> tuple[datetime, PydanticObjectId] | None:
    """The cursor of a list by time, `<time>_<id>`."""
    moment, _, last = request.args.get("after", "").partition("_")
    try:
        at = datetime.fromisoformat(moment).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return (at, PydanticObjectId(last)) if PydanticObjectId.is_valid(last) else None
