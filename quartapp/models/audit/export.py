"""Entries of the audit log as JSON lines or CSV."""

import csv
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any

from beanie import PydanticObjectId
from bson import DBRef

from quartapp import clock
from quartapp.activities import AUDIT_EXPORTED
from quartapp.db.mongo import Tx
from quartapp.i18n import gettext as _
from quartapp.i18n.numbers import format_number
from quartapp.models.audit.event import Event
from quartapp.models.audit.search import EventFilter, batches
from quartapp.models.audit.sentences import name_of, plain_text
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import linked_id

COLUMNS = (
    *("id", "at", "kind", "text", "actor", "actor_id", "subject", "subject_id"),
    *("session", "ip", "details"),
)
# A cell that begins with one of these is a formula for spreadsheets.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class Format(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"

    @property
    def content_type(self) -> str:
        return "text/csv; charset=utf-8" if self is Format.CSV else "application/jsonl"


async def record_export(wanted: EventFilter, file_format: Format, *, by: Actor) -> None:
    """Record the event AUDIT_EXPORTED, in an authorized transaction. Raises SessionOver and
    RightsChanged.

    Of the filter, the address and the text are not stored, because they may be personal data of
    somebody else, who may be erased later.
    """
    limits: dict[str, Any] = {
        "format": file_format.value,
        "person": wanted.person,
        "kind": wanted.kind,
    }
    limits |= {"since": wanted.since, "until": wanted.until}
    hidden = [name for name, used in (("ip", wanted.ip), ("q", wanted.text)) if used]
    limits |= {"filtered_by": hidden}
    details = {name: value for name, value in limits.items() if value}

    async def work(tx: Tx) -> None:
        await Event.record(AUDIT_EXPORTED, by=by, tx=tx, **details)

    await authorized_transaction(by, work)


async def export(
    wanted: EventFilter,
    file_format: Format,
    *,
    after: PydanticObjectId | None = None,
    rows: int | None = None,
    seconds: float | None = None,
    allowed: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncIterator[str]:
    """Yield the entries, newest first, as text in pieces of up to a few hundred lines.

    Begins behind the entry of the id `after`. Ends early after `rows` entries, after `seconds`, and
    when `allowed` returns False, which is called before each piece. Then the last line says so, and
    gives the id of the last entry, with which `after` continues. Records no event: `record_export`
    does.
    """
    yield _head(file_format)
    deadline = clock.monotonic() + seconds if seconds is not None else None
    count, last = 0, after
    async for events in batches(wanted, after=after):
        if allowed is not None and not await allowed():
            yield _cut(
                file_format, _("Cut off, because you may no longer read the audit log."), last
            )
            return
        shown = events if rows is None else events[: rows - count]
        count += len(shown)
        if shown:
            last = shown[-1].id
            yield _piece(file_format, shown)
        if len(shown) < len(events):
            yield _cut(
                file_format,
                _("Cut off after %(number)s entries.", number=format_number(count)),
                last,
            )
            return
        if deadline is not None and clock.monotonic() > deadline:
            yield _cut(file_format, _("Cut off, because the export took too long."), last)
            return


def _head(file_format: Format) -> str:
    return _csv([COLUMNS]) if file_format is Format.CSV else ""


def _piece(file_format: Format, events: Sequence[Event]) -> str:
    rows = [_row(event) for event in events]
    if file_format is Format.CSV:
        return _csv([[_cell(row[name]) for name in COLUMNS] for row in rows])
    return "".join(f"{_json(row)}\n" for row in rows)


def _cut(file_format: Format, why: str, last: PydanticObjectId | None) -> str:
    """Return the last line of an export that has ended early."""
    if file_format is Format.CSV:
        return _csv([[f"# {why}", f"after={last or ''}"]])
    return f"{_json({'cut': why, 'after': last})}\n"


def _row(event: Event) -> dict[str, Any]:
    """Return the values of an event by the names in COLUMNS. Its actor and subject are fetched, or
    links to deleted users."""
    return {
        "id": event.id,
        "at": event.at,
        "kind": event.verb,
        "text": plain_text(event),
        "actor": name_of(event.actor),
        "actor_id": linked_id(event.actor) if event.actor else None,
        "subject": name_of(event.subject),
        "subject_id": linked_id(event.subject) if event.subject else None,
        "session": event.session,
        "ip": event.ip,
        "details": event.details,
    }


def _cell(value: Any) -> str:
    """Return the value as a cell that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    text = _json(value) if isinstance(value, dict) else str(_plain(value))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    """Return a value that JSON does not have as text: times in ISO format, references as ids."""
    if hasattr(value, "isoformat"):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value.id if isinstance(value, DBRef) else value)
