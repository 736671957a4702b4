"""Checking sessions again when thousands are affected together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest
from beanie import PydanticObjectId
from quart import Quart

from quartapp.authority import session_states
from quartapp.authority.session_rule import PrincipalOrEnded
from quartapp.models import Role, Session
from quartapp.models.base.actor import SYSTEM
from quartapp.models.sessions.reason import Reason
from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from quartapp.ws import dispatcher
from tests.integration.models.helpers import register, sign_in
from tests.integration.ws.test_joining_the_hub import heard
from tests.people import until

AT_ONCE, SESSIONS = 5, 12


@dataclass
class Answers:
    """Controls when the database answers about sessions, and what."""

    may_come: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    about: list[list[PydanticObjectId]] = field(default_factory=list)


@pytest.fixture
def answers(app: Quart, monkeypatch: pytest.MonkeyPatch) -> Answers:
    monkeypatch.setattr(dispatcher, "BATCH_SIZE", AT_ONCE)
    answers, ask = Answers(), session_states.states_matching
    answers.may_come.set()

    async def states(match: Mapping[str, Any]) -> list[PrincipalOrEnded]:
        answers.asked.set()
        await answers.may_come.wait()
        found = await ask(match)
        answers.about.append([state.session_id for state in found])
        return found

    monkeypatch.setattr(session_states, "states_matching", states)
    return answers


async def is_empty() -> bool:
    return not await Session.find({"ended_at": None}).count()


async def test_very_many_sessions_are_checked_in_batches(answers: Answers) -> None:
    """Another program takes the role away. One query for all sessions would take too long, and the
    sockets of others would have to wait for it."""
    crew = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
    ada = await register("ada", "crew")
    sessions = {(await sign_in(ada))[0].id for _ in range(SESSIONS)}
    database = Session.get_motor_collection().database
    assert crew
    await database["users"].update_one({"_id": ada.id}, {"$pop": {"roles": 1}})

    async def are_told() -> bool:
        # The database ends them a moment earlier.
        return await is_empty() and sum(map(len, answers.about)) >= SESSIONS

    await until(are_told)
    assert max(map(len, answers.about)) == AT_ONCE
    assert Counter(chain(*answers.about)) == dict.fromkeys(sessions, 1)


async def test_sessions_of_a_role_deleted_by_hand_are_marked_as_ended(answers: Answers) -> None:
    """Without a socket they are not evaluated."""
    crew = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
    ada = await register("ada", "crew")
    for _ in range(SESSIONS):
        await sign_in(ada)
    await Session.get_motor_collection().database["roles"].delete_one({"_id": crew.id})
    await until(is_empty)
    ended = await Session.find({"ended_reason": "role_deleted"}).count()
    assert (ended, answers.about) == (SESSIONS, [])


async def test_deleting_a_role_closes_its_sockets_without_reading_their_sessions(
    app: Quart, answers: Answers
) -> None:
    crew = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
    said: list[dict[str, Any]] = []
    _, token = await sign_in(await register("ada", "crew"))
    session, of_bob = await sign_in(await register("bob", "member"))
    others: list[dict[str, Any]] = []
    listening = asyncio.create_task(heard(app, token, said))
    other = asyncio.create_task(heard(app, of_bob, others))

    async def are_greeted() -> bool:
        return bool(said and others)

    await until(are_greeted)
    answers.may_come.clear()
    event = await crew.remove(by=SYSTEM)
    assert await listening == 4401
    assert event
    assert (said[-1]["type"], said[-1]["reason"]) == ("session.ended", "role_deleted")
    assert runtime_of(app).receipts.count_tabs(event.id) == 1
    assert not other.done()
    answers.may_come.set()
    await session.end(Reason.ENDED_BY_ADMIN, by=SYSTEM)
    assert await other == 4401


async def test_an_ended_session_is_closed_while_others_are_being_checked(
    app: Quart, answers: Answers
) -> None:
    ada, bob = await register("ada", "member"), await register("bob", "member")
    session, token = await sign_in(ada)
    said: list[dict[str, Any]] = []
    listening = asyncio.create_task(heard(app, token, said))

    async def is_greeted() -> bool:
        return any(message["type"] == "hello" for message in said)

    await until(is_greeted)
    await sign_in(bob)
    answers.may_come.clear()
    answers.asked.clear()
    database = Session.get_motor_collection().database
    await database["users"].update_one({"_id": bob.id}, {"$set": {"disabled_at": "now"}})
    await answers.asked.wait()
    await session.end(Reason.ENDED_BY_ADMIN, by=SYSTEM)
    assert await listening == 4401
    answers.may_come.set()


async def test_editing_a_role_checks_only_sessions_with_open_sockets(
    answers: Answers,
) -> None:
    crew = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
    await sign_in(await register("ada", "crew"))
    await crew.edit(name="crew", description="", permissions=[], by=SYSTEM)
    # Heard after that, and looked at together with it at the earliest.
    eve = await register("eve", "crew")
    session, _ = await sign_in(eve)
    database = Session.get_motor_collection().database
    await database["users"].update_one({"_id": eve.id}, {"$set": {"disabled_at": "now"}})

    async def is_judged() -> bool:
        return any(session.id in ids for ids in answers.about)

    await until(is_judged)
    assert answers.about == [[session.id]]
