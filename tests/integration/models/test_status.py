"""Predicates and database filters of one rule agree: account status, and session expiry."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import Any

from quartapp import clock
from quartapp.authority.session_rule import EndedSession, state_of
from quartapp.db.mongo import Database
from quartapp.models.accounts import status
from quartapp.models.sessions import expiry
from quartapp.models.sessions.session import Session
from tests.integration.models.helpers import register, sign_in

MISSING = object()
MOMENT = timedelta(milliseconds=1)


def documents(**values: list[Any]) -> list[dict[str, Any]]:
    """Return a document for each combination of the values."""
    combinations = product(*values.values())
    rows = [zip(values, each, strict=True) for each in combinations]
    return [
        {"_id": number, **{name: value for name, value in row if value is not MISSING}}
        for number, row in enumerate(rows)
    ]


async def found(db: Database, match: dict[str, Any]) -> set[int]:
    return {row["_id"] async for row in db["samples"].find(match, {"_id": 1})}


async def test_the_account_filters_find_what_the_predicates_say(db: Database) -> None:
    now = clock.now()
    users = documents(
        disabled_at=[MISSING, None, now - MOMENT, now + MOMENT],
        closed_at=[MISSING, None, now - MOMENT, now + MOMENT],
        closes_at=[MISSING, None, now - MOMENT, now, now + MOMENT],
    )
    await db["samples"].insert_many(users)
    active = {user["_id"] for user in users if status.is_active(user, now)}
    assert await found(db, status.active_filter(now)) == active
    expired = {user["_id"] for user in users if status.has_expired(user, now)}
    assert await found(db, status.expired_filter(now)) == expired
    assert 0 < len(active) < len(users)
    assert 0 < len(expired) < len(users)


async def test_the_session_filter_finds_what_the_predicate_says(db: Database) -> None:
    now, idle = clock.now(), timedelta(seconds=90)
    sessions = documents(
        ended_at=[MISSING, None, now - MOMENT],
        expires_at=[now - MOMENT, now, now + MOMENT],
        seen_at=[now - idle - MOMENT, now - idle, now - idle + MOMENT, now],
        idle_seconds=[90, 0],
    )
    await db["samples"].insert_many(sessions)
    active = {
        row["_id"]
        for row in sessions
        if row.get("ended_at") is None
        and expiry.deadline(row["expires_at"], row["seen_at"], row["idle_seconds"]) > now
    }
    assert await found(db, expiry.active_filter(now)) == active
    assert 0 < len(active) < len(sessions)


async def test_the_session_rule_and_the_filter_agree_on_expiry(
    db: Database,
) -> None:
    ada = await register("ada", "member")
    session, _ = await sign_in(ada)
    row = await db["sessions"].find_one({"_id": session.id})
    user = await db["users"].find_one({"_id": ada.id})
    assert row is not None
    roles = await db["roles"].find({"_id": {"$in": [link.id for link in row["roles"]]}}).to_list(2)
    deadline = expiry.deadline(session.expires_at, session.seen_at, session.idle_seconds)
    for now, alive in ((deadline - MOMENT, True), (deadline, False)):
        state = state_of({**row, "holder": [user], "held": roles}, now)
        assert (not isinstance(state, EndedSession)) is alive
        matches = await Session.find({"_id": session.id, **expiry.active_filter(now)}).count()
        assert bool(matches) is alive
