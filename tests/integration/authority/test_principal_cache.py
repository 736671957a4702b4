"""The cache of principals, and when a worker does not use it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from quart import Quart

from quartapp.authority import session_states
from quartapp.authority.session_rule import EndedSession, Principal, PrincipalOrEnded
from quartapp.models import Role, Session, User
from quartapp.models.accounts.preferences import Preferences
from quartapp.models.accounts.profile import change_preferences
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.models.sessions.opening import open_session
from quartapp.models.sessions.reason import Reason
from quartapp.runtime import Runtime, runtime_of
from tests.people import until


@dataclass
class Ada:
    """A user whose principal is cached, and the number of queries about her."""

    user: User
    session: Session
    token: str
    running: Runtime
    asked: int = 0

    async def state(self) -> PrincipalOrEnded | None:
        return await self.running.principal_cache.state_by_token(self.token)

    async def is_cached(self) -> bool:
        before = self.asked
        await self.state()
        return self.asked == before


@pytest.fixture
async def ada(app: Quart, monkeypatch: pytest.MonkeyPatch) -> Ada:
    member = await Role.named("member")
    assert member
    user = await register_account("ada", "ada@example.org", "hash", roles=[member], by=SYSTEM)
    day = timedelta(days=1)
    session, token, _ = await open_session(user, device="x", by=SYSTEM, idle=day, lifetime=day)
    ada = Ada(user, session, token, runtime_of(app))
    ask = session_states.states_matching

    async def counted(match: Any) -> list[PrincipalOrEnded]:
        ada.asked += 1
        return await ask(match)

    monkeypatch.setattr(session_states, "states_matching", counted)
    await until(ada.is_cached)
    return ada


async def test_a_principal_is_cached_after_its_first_query(ada: Ada) -> None:
    assert isinstance(await ada.state(), Principal)
    assert await ada.is_cached()


async def test_changed_preferences_reach_a_cached_principal(ada: Ada) -> None:
    wished = Preferences(language="de", timezone="Europe/Berlin", theme="dark")
    await change_preferences(ada.user.id, wished, by=SYSTEM)

    async def has_arrived() -> bool:
        state = await ada.state()
        assert isinstance(state, Principal)
        return (state.language, state.timezone, state.theme) == ("de", "Europe/Berlin", "dark")

    await until(has_arrived)
    await until(ada.is_cached)
    assert await has_arrived()


@pytest.mark.parametrize(
    "stored",
    [None, "x", {}, {"theme": "purple", "timezone": "Mars/Base", "language": 7}, {"theme": []}],
)
async def test_preferences_that_are_not_understood_count_as_none(ada: Ada, stored: Any) -> None:
    await User.change({"_id": ada.user.id}, {"$set": {"preferences": stored}})
    state = await session_states.state_by_id(ada.session.id)
    assert isinstance(state, Principal)
    assert (state.language, state.timezone, state.theme) == (None, None, None)


async def test_a_cache_of_size_zero_asks_the_database_each_time(
    ada: Ada, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.running.principal_cache.on_missed_changes()
    monkeypatch.setattr(ada.running.principal_cache, "_max_entries", 0)
    assert isinstance(await ada.state(), Principal)
    assert not await ada.is_cached()


async def test_the_cache_is_not_used_after_the_lease_has_ended(
    ada: Ada, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ada.running.lease, "_valid_until", 0.0)
    monkeypatch.setattr(ada.running.lease, "on_change", lambda change: None)
    assert not await ada.is_cached()


@pytest.mark.parametrize(
    ("collection", "change"),
    [
        ("users", {"$set": {"roles": []}}),
        ("users", {"$set": {"disabled_at": "now"}}),
        ("users", {"$set": {"notices_read": 7}}),
        ("sessions", {"$set": {"digest": "another"}}),
        ("sessions", {"$set": {"ended_reason": "signed_out"}}),
        ("sessions", {"$currentDate": {"seen_at": True}}),
    ],
    ids=lambda value: str(value),
)
async def test_a_raw_write_drops_the_cached_principal(
    ada: Ada, collection: str, change: dict[str, Any]
) -> None:
    document_id = ada.user.id if collection == "users" else ada.session.id
    database = Session.get_motor_collection().database
    await database[collection].update_one({"_id": document_id}, change)

    async def is_dropped() -> bool:
        return not await ada.is_cached()

    await until(is_dropped)


async def test_a_cached_principal_is_not_used_after_the_account_expired(ada: Ada) -> None:
    await ada.running.account_expiry.stop()
    database = Session.get_motor_collection().database
    soon = [{"$set": {"closes_at": {"$add": ["$$NOW", 700]}}}]
    await database["users"].update_one({"_id": ada.user.id}, soon)
    await ada.running.barrier.wait()
    assert isinstance(await ada.state(), Principal)
    assert await ada.is_cached()

    async def is_over() -> bool:
        return not isinstance(await ada.state(), Principal)

    await until(is_over, within=2)
    found = await database["users"].find_one({"_id": ada.user.id})
    assert found
    assert found["disabled_at"] is None, "no event was needed"


async def test_using_a_session_keeps_its_cached_principal(ada: Ada) -> None:
    database = Session.get_motor_collection().database
    await Session.record_use({ada.session.id: (ada.session.seen_at + timedelta(hours=1), None)})
    await User.record_use({ada.user.id: ada.session.seen_at + timedelta(hours=1)})
    # Earlier writes arrive before the barrier.
    await ada.running.barrier.wait()
    assert await ada.is_cached()
    found = await database["sessions"].find_one({"_id": ada.session.id})
    assert found
    assert found["uses"] == 1


async def test_the_end_of_a_session_is_known_after_the_barrier(ada: Ada) -> None:
    for _ in range(20):
        day = timedelta(days=1)
        session, token, _ = await open_session(
            ada.user, device="x", by=SYSTEM, idle=day, lifetime=day
        )
        assert isinstance(await ada.running.principal_cache.state_by_token(token), Principal)
        await session.end(Reason.ENDED_BY_ADMIN, by=SYSTEM)
        await ada.running.barrier.wait()
        assert not isinstance(await ada.running.principal_cache.state_by_token(token), Principal)


async def test_a_barrier_mark_without_a_requester_can_be_waited_for(ada: Ada) -> None:
    for _ in range(5):
        day = timedelta(days=1)
        session, *_ = await open_session(ada.user, device="x", by=SYSTEM, idle=day, lifetime=day)
        event = await session.end(Reason.ENDED_BY_ADMIN, by=SYSTEM)
        assert (await ada.running.barrier.wait(event)).complete


async def test_an_ended_session_is_refused_without_a_database_query(
    ada: Ada, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ada.session.end(Reason.ENDED_BY_ADMIN, by=SYSTEM)
    await ada.running.barrier.wait()
    ended = await ada.state()
    assert isinstance(ended, EndedSession)
    monkeypatch.setattr(ada.running.lease, "_valid_until", 0.0)
    monkeypatch.setattr(ada.running.lease, "on_change", lambda change: None)
    assert await ada.is_cached()
    assert await ada.state() == ended


async def test_an_outdated_query_result_is_not_cached(
    ada: Ada, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session ends, and its event arrives, before the older query has returned."""
    day = timedelta(days=1)
    session, token, _ = await open_session(ada.user, device="x", by=SYSTEM, idle=day, lifetime=day)
    ask, asked, may_answer = session_states.states_matching, asyncio.Event(), asyncio.Event()

    async def slow(match: Any) -> list[PrincipalOrEnded]:
        found = await ask(match)
        asked.set()
        await may_answer.wait()
        return found

    monkeypatch.setattr(session_states, "states_matching", slow)
    late = asyncio.create_task(ada.running.principal_cache.state_by_token(token))
    await asked.wait()
    monkeypatch.setattr(session_states, "states_matching", ask)
    await session.end(Reason.ENDED_BY_ADMIN, by=SYSTEM)
    await ada.running.barrier.wait()
    may_answer.set()
    assert isinstance(await late, Principal)  # The query began before the end was acknowledged.
    assert not isinstance(await ada.running.principal_cache.state_by_token(token), Principal)


async def test_the_number_of_cached_principals_is_bounded(
    ada: Ada, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ada.running.principal_cache, "_max_entries", 3)
    day = timedelta(days=1)
    tokens = []
    for _ in range(6):
        _, token, _ = await open_session(ada.user, device="x", by=SYSTEM, idle=day, lifetime=day)
        tokens.append(token)
        await ada.running.principal_cache.state_by_token(token)
    assert len(ada.running.principal_cache) <= 3
