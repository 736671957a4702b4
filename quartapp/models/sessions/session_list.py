"""The active sessions of all users, for administrators: most recently used first, with filters."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from beanie import PydanticObjectId, SortDirection

from quartapp import clock
from quartapp.models.base.counting import CappedCount
from quartapp.models.base.record import fetch_links
from quartapp.models.base.references import EVENTS
from quartapp.models.sessions import expiry
from quartapp.models.sessions.session import Session

DESCENDING = SortDirection.DESCENDING
NEWEST = [("seen_at", DESCENDING), ("_id", DESCENDING)]
# A place in the list: the last use and the id of a session.
Place = tuple[datetime, PydanticObjectId]
# The longest idle time that the list takes into account: ten years.
LONGEST = 3660 * 86400
# How many ended sessions a page skips.
SKIPPED = 500
# How many sessions the dashboard counts.
COUNTED = 1000
# How many sessions that match a filter are listed. They have no index in the list's order.
FILTERED = 1000
# How many that match a filter are examined, of which some have expired without use.
EXAMINED = 3000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which active sessions are listed: those of one user, from one IP address, with a page that is
    open now, or with several of these. None and False do not limit."""

    user: PydanticObjectId | None = None
    ip: str | None = None
    online: bool = False

    def match(self, now: datetime) -> dict[str, Any]:
        """Return the filter of the database; empty if nothing limits."""
        user = {"user.$id": self.user} if self.user else {}
        ip = {"ip": self.ip} if self.ip else {}
        online = {"online_until": {"$gt": now}} if self.online else {}
        return {**user, **ip, **online}


@dataclass(frozen=True, slots=True)
class SignedIn:
    """How many users have an active session, and how many of them an open page.

    At most COUNTED sessions of each kind are examined; `more` says that there are further ones.
    """

    users: CappedCount
    online: CappedCount


async def count_signed_in() -> SignedIn:
    """Return how many users are signed in, and how many have an open page. Sends up to three
    queries, one after the other."""
    now = clock.now()
    idle_times = await Session.get_motor_collection().distinct("idle_seconds")
    used = _used_within_idle_time(idle_times, now, {}) if idle_times else None
    users = await _count_users(used, now) if used else CappedCount(0)
    return SignedIn(users, await _count_users({"online_until": {"$gt": now}}, now))


async def _count_users(match: Mapping[str, Any], now: datetime) -> CappedCount:
    """Return the number of users who have an active session among COUNTED + 1 sessions that match,
    with `more` if there were so many."""
    active = {"$max": expiry.is_active(now)}
    by_user = {"_id": "$user", "active": active, "sessions": {"$sum": 1}}
    totals = {
        "_id": None,
        "users": {"$sum": {"$cond": ["$active", 1, 0]}},
        "sessions": {"$sum": "$sessions"},
    }
    steps = [{"$match": match}, {"$limit": COUNTED + 1}, {"$group": by_user}, {"$group": totals}]
    found = await Session.get_motor_collection().aggregate(steps).to_list(1)
    if not found:
        return CappedCount(0)
    return CappedCount(min(found[0]["users"], COUNTED), more=found[0]["sessions"] > COUNTED)


async def active_page(
    wanted: Wanted, *, before: Place | None = None, limit: int = 50
) -> tuple[list[Session], Place | None]:
    """Return a page of the active sessions, most recently used first, with their users; and the
    place from which the next page goes on, None if this is the last one.

    `before` is the place that the page before returned. With a filter, only EXAMINED sessions that
    match and FILTERED active ones are considered, in no particular order if there are more. Without
    one, skips at most SKIPPED sessions that have ended, so a page may have fewer rows than `limit`,
    even none, and yet not be the last.
    """
    now = clock.now()
    if match := wanted.match(now):
        rows, place = await _filtered_page(match, now, before, limit)
    else:
        rows, place = await _page(now, before, limit)
    await fetch_links(rows, ["user"])
    return rows, place


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest entry of the audit log that was recorded in a session: its activity and time."""

    verb: str
    at: datetime


async def latest_entries(sessions: Collection[Session]) -> dict[PydanticObjectId, Latest]:
    """Return the latest entry of each of these sessions that has one, by the session's id.

    In one query, which reads one entry for each session."""
    if not sessions:
        return {}
    latest = [{"$sort": {"_id": -1}}, {"$limit": 1}, {"$project": {"verb": 1, "at": 1}}]
    steps: list[dict[str, Any]] = [
        {"$match": {"_id": {"$in": [session.id for session in sessions]}}},
        {
            "$lookup": {
                "from": EVENTS,
                "localField": "_id",
                "foreignField": "session",
                "pipeline": latest,
                "as": "latest",
            }
        },
        {"$project": {"latest": 1}},
    ]
    rows = Session.get_motor_collection().aggregate(steps)
    return {
        row["_id"]: Latest(each["verb"], each["at"]) async for row in rows for each in row["latest"]
    }


async def _filtered_page(
    match: Mapping[str, Any], now: datetime, before: Place | None, limit: int
) -> tuple[list[Session], Place | None]:
    """Return the page as `active_page` does, without the users, among EXAMINED sessions that match
    and FILTERED active ones."""
    # This much the index tells.
    unended = {"ended_at": None, "expires_at": {"$gt": now}}
    steps = [
        {"$match": {**match, **unended}},
        {"$limit": EXAMINED},
        {"$match": expiry.active_filter(now)},
        {"$limit": FILTERED},
        {"$match": _behind(before)},
        {"$sort": {"seen_at": -1, "_id": -1}},
        {"$limit": limit + 1},
    ]
    rows = await Session.aggregate(steps, projection_model=Session).to_list()
    shown = rows[:limit]
    return shown, (shown[-1].seen_at, shown[-1].id) if len(rows) > limit else None


async def _page(
    now: datetime, before: Place | None, limit: int
) -> tuple[list[Session], Place | None]:
    """Return the page as `active_page` does, of all sessions and without the users.

    Reads sessions that were used within their idle time, and skips those that have ended or
    expired. After SKIPPED of these returns what it has, with the place of the last session read.
    """
    idle_times = await Session.get_motor_collection().distinct("idle_seconds")
    rows: list[Session] = []
    skipped = 0
    # More than the page lacks: else, once it is full, each query would read a single session.
    size = limit + 1
    while skipped < SKIPPED:
        found = await _recently_used(idle_times, now, before, size)
        for session in found:
            if len(rows) == limit and session.is_active:
                # There is at least one more.
                return rows, before
            before = session.seen_at, session.id
            if session.is_active:
                rows.append(session)
            else:
                skipped += 1
        if len(found) < size:
            return rows, None
    return rows, before


async def _recently_used(
    idle_times: Collection[float], now: datetime, before: Place | None, limit: int
) -> list[Session]:
    """Return sessions that were used within their idle time, most recently used first, also ended
    ones.

    The database reads the index `by_idle_time` at one place for each idle time, and merges.
    """
    late = {"$lte": before[0]} if before else {}
    if not idle_times:
        return []
    match = _used_within_idle_time(idle_times, now, late)
    if before:
        match = {"$and": [match, _behind(before)]}
    return await Session.find_with_links(match, sort=NEWEST, limit=limit)


def _used_within_idle_time(
    idle_times: Collection[float], now: datetime, late: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the filter for sessions that were used within their idle time, also ended ones. `late`
    limits the time of the last use. There must be an idle time."""
    branches = [
        {
            "idle_seconds": idle,
            "seen_at": {"$gt": now - timedelta(seconds=min(idle, LONGEST)), **late},
        }
        for idle in idle_times
    ]
    return {"$or": branches}


def _behind(place: Place | None) -> dict[str, Any]:
    """Return the filter for sessions behind the place; empty without a place."""
    if place is None:
        return {}
    seen, last = place
    return {"$or": [{"seen_at": {"$lt": seen}}, {"seen_at": seen, "_id": {"$lt": last}}]}
