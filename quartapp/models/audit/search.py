"""The entries of the audit log for administrators: filters and pages.

No page takes longer with more entries. A page reads an index that has the order of the list, for
all entries, for one person, one address or one kind. What that index cannot filter is filtered
afterwards, among at most EXAMINED entries: then a page may have fewer entries than its size, even
none, and yet not be the last.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from beanie import PydanticObjectId

from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.record import documents, fetch_links, first_id_at
from quartapp.models.base.references import EVENTS, USERS

Filter = dict[str, Any]

EXAMINED = 1500
# Entries of one query of `batches`.
BATCH = 500

_TEXT = {"to": "string", "onError": "", "onNull": ""}
_JOINED = {
    "$reduce": {
        "input": "$$detail.v",
        "initialValue": "",
        "in": {"$concat": ["$$value", " ", {"$convert": {"input": "$$this", **_TEXT}}]},
    }
}
# A detail as text; a list as its elements with spaces.
_DETAIL = {
    "$cond": [
        {"$isArray": "$$detail.v"},
        _JOINED,
        {"$convert": {"input": "$$detail.v", **_TEXT}},
    ]
}


@dataclass(frozen=True)
class EventFilter:
    """Which entries are listed. What is empty does not limit.

    `person` did it or it happened to them; `common` are the ids of events about many users that
    happened to the person too. `kind` is an audit name, `since` a time and `until` the time before
    which it happened. `text` is part of one of the details, ignoring case.
    """

    person: PydanticObjectId | None = None
    common: Sequence[PydanticObjectId] = field(default=(), repr=False)
    kind: str = ""
    ip: str = ""
    since: datetime | None = None
    until: datetime | None = None
    text: str = ""

    @classmethod
    async def about(cls, person: PydanticObjectId | None, **limits: Any) -> Self:
        """Return a filter with this person, the events about many users that the person's document
        lists, and the other `limits`. Reads the document; without a person, makes no query."""
        row = person and await documents(USERS).find_one({"_id": person}, {"common_events": 1})
        return cls(person, (row or {}).get("common_events", ()), **limits)

    @property
    def is_empty(self) -> bool:
        return self == EventFilter()

    @property
    def rest(self) -> Filter:
        """The filter for what `source` leaves out; empty if it leaves out nothing."""
        rest: Filter = {}
        if self.ip and self.person:
            rest["ip"] = self.ip
        if self.kind and self.ip and not self.person:
            rest["verb"] = self.kind
        if self.text:
            rest["$expr"] = _contains(self.text)
        return rest

    def source(self, ids: Filter) -> Filter:
        """Return the filter that an index answers in the order of the ids: for the person or,
        without one, for the IP address or, without one, for the kind. `ids` limits the ids."""
        within = {"_id": ids} if ids else {}
        verb = {"verb": self.kind} if self.kind else {}
        if self.person:
            ways: list[Filter] = [
                {"actor.$id": self.person, **verb, **within},
                {"subject.$id": self.person, **verb, **within},
            ]
            if self.common:
                common = {"_id": {**ids, "$in": list(self.common)}}
                ways.append({**common, **verb})
            return {"$or": ways}
        return {**({"ip": self.ip} if self.ip else verb), **within}

    @property
    def bounds(self) -> Filter:
        """The ids between the two times. An id contains the time of its creation."""
        bounds: Filter = {"$gte": first_id_at(self.since)} if self.since else {}
        return bounds | ({"$lt": first_id_at(self.until)} if self.until else {})


@dataclass(frozen=True)
class EventPage:
    """A page of the list, the newest entry first.

    `newer` and `older` are the ids from which the pages before and after it begin, None if there is
    none. `partial` says that the search has examined EXAMINED entries before the page was full.
    """

    events: list[Event]
    newer: PydanticObjectId | None = None
    older: PydanticObjectId | None = None
    partial: bool = False


async def find_person(name: str) -> PydanticObjectId | None:
    """Return the id of the user of this name, or the id that the text itself is, such as that of a
    deleted user; else None."""
    if user := await User.by_username(name):
        return user.id
    return PydanticObjectId(name) if PydanticObjectId.is_valid(name) else None


async def page(
    wanted: EventFilter,
    *,
    after: PydanticObjectId | None = None,
    before: PydanticObjectId | None = None,
    size: int,
) -> EventPage:
    """Return a page of at most `size` entries with their actors, subjects and receipts; the first
    page without `after` and `before`.

    The entries follow the one with the id `after` in the list, so they are older, or precede the
    one with the id `before`, which takes precedence.
    """
    back = before is not None
    place = before if back else after
    events, stop = await _read(wanted, place, back=back, size=size + 1)
    more = len(events) > size
    events = events[:size]
    end = events[-1].id if more else stop
    if back:
        events.reverse()
    start = events[0].id if events else place
    last = events[-1].id if events else place
    await fetch_links(events, ["actor", "subject"])
    await Event.add_receipts(events)
    return EventPage(
        events,
        newer=end if back else start if place else None,
        older=last if back else end,
        partial=stop is not None and not more,
    )


async def batches(
    wanted: EventFilter, *, after: PydanticObjectId | None = None
) -> AsyncIterator[list[Event]]:
    """Yield all entries, newest first, in lists of at most BATCH, with actors and subjects.

    A list is shorter, even empty, where EXAMINED entries were examined before it was full. With
    `after`, the first entry is the one that follows the entry of this id.
    """
    place = after
    while True:
        events, stop = await _read(wanted, place, back=False, size=BATCH)
        await fetch_links(events, ["actor", "subject"])
        yield events
        if len(events) == BATCH:
            place = events[-1].id
        elif stop is not None:
            place = stop
        else:
            return


async def _read(
    wanted: EventFilter, place: PydanticObjectId | None, *, back: bool, size: int
) -> tuple[list[Event], PydanticObjectId | None]:
    """Return at most `size` entries from the place on, in the direction of reading, and the id of
    the last one that was examined if EXAMINED has ended the search, else None."""
    ids = dict(wanted.bounds)
    if place is not None:
        edge = "$gt" if back else "$lt"
        pick = max if back else min
        ids[edge] = pick(place, ids.get(edge, place))
    source, rest, sort = wanted.source(ids), wanted.rest, {"_id": 1 if back else -1}
    stages: list[Filter] = [{"$match": source}, {"$sort": sort}]
    if rest:
        stages += [{"$limit": EXAMINED}, {"$match": rest}]
    stages.append({"$limit": size})
    found = documents(EVENTS).aggregate(stages)
    events = [Event.model_validate(row) async for row in found]
    if not rest or len(events) == size:
        return events, None
    last = documents(EVENTS).find(source, {"_id": 1}).sort("_id", sort["_id"])
    rows = await last.skip(EXAMINED - 1).limit(1).to_list(1)
    return events, rows[0]["_id"] if rows else None


def _contains(text: str) -> Filter:
    """Return an expression that is true if one of the details contains the text."""
    wanted = {"$literal": re.escape(text)}
    matches = {"$regexMatch": {"input": _DETAIL, "regex": wanted, "options": "i"}}
    details = {"$objectToArray": {"$ifNull": ["$details", {}]}}
    return {"$anyElementTrue": {"$map": {"input": details, "as": "detail", "in": matches}}}
