"""Sessions in a real database: who they authenticate, and what ends them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from beanie import PydanticObjectId
from bson import DBRef

from quartapp import clock
from quartapp.authority import session_states
from quartapp.authority.session_rule import EndedSession, Principal
from quartapp.db.mongo import Database
from quartapp.jobs.last_seen import LastSeenWriter
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.tokens import digest_of
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.models.sessions.session_list import Wanted, active_page
from quartapp.policy import Permission
from tests.integration.models.helpers import (
    HOUR,
    acting,
    concurrently,
    end_reason,
    not_none,
    register,
    reloaded,
    role,
    sign_in,
)

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def ada(db: Database) -> User:
    await register("root", "admin")
    await Role.add("editor", "", [Permission.POSTS_MODERATE], by=SYSTEM)
    return await register("ada", "member", "editor")


async def principal_of(token: str) -> Principal:
    state = await session_states.state_by_digest(digest_of(token))
    assert isinstance(state, Principal)
    return state


async def ended_session(token: str) -> EndedSession:
    state = await session_states.state_by_digest(digest_of(token))
    assert isinstance(state, EndedSession)
    return state


async def move(session: Session, **times: timedelta) -> None:
    """Set these times of the session, relative to now."""
    now = clock.now()
    assert await Session.change(
        {"_id": session.id}, {"$set": {name: now + away for name, away in times.items()}}
    )


async def test_only_the_token_authenticates_a_session(ada: User) -> None:
    session, token = await sign_in(ada)
    found = await principal_of(token)
    assert found == await session_states.state_by_id(session.id)
    assert (found.session_id, found.user_id, found.username) == (session.id, ada.id, "ada")
    assert found.roles == ("editor", "member")
    assert found.permissions == {"posts.write", "posts.moderate"}
    assert found.cursor == found.unread == 1
    for other in ("", token[:-1], token + "=", session.digest, digest_of(session.digest), "\0"):
        assert await session_states.state_by_digest(digest_of(other)) is None
    assert await session_states.state_by_id(PydanticObjectId()) is None


async def test_a_session_stores_the_ip_address_and_the_device(ada: User) -> None:
    session, _ = await sign_in(ada)
    found = await Session.get(session.id)
    assert found is not None
    assert (found.device, found.ip, found.remembered) == ("Firefox", "192.0.2.7", False)
    assert found.expires_at - found.created_at == HOUR
    assert found.idle_seconds == 1800


async def test_a_granted_role_applies_to_the_running_session(ada: User) -> None:
    _, token = await sign_in(ada)
    before = await principal_of(token)
    root = await User.by_username("root")
    assert root is not None
    await ada.grant(await role("moderator"), by=acting(root))
    after = await principal_of(token)
    assert after.permissions - before.permissions == {"users.read"}
    assert after.version == before.version + 1
    assert after.changed_by == "root"


# ---- raw writes, as by a mongo shell or another service


Raw = Callable[[Database, User, Session], Awaitable[Any]]


async def _role_taken(db: Database, user: User, _: Session) -> None:
    editor = await role("editor")
    await db["users"].update_one({"_id": user.id}, {"$pull": {"roles": DBRef("roles", editor.id)}})


def _user(**values: object) -> Raw:
    return lambda db, user, _: db["users"].update_one({"_id": user.id}, {"$set": values})


def _session(**values: object) -> Raw:
    return lambda db, _, session: db["sessions"].update_one({"_id": session.id}, {"$set": values})


async def _user_deleted(db: Database, user: User, _: Session) -> None:
    await db["users"].delete_one({"_id": user.id})


async def _role_deleted(db: Database, *_: object) -> None:
    await db["roles"].delete_one({"name": "editor"})


async def _role_replaced(db: Database, *_: object) -> None:
    """Replace the role with one of the same name and another id."""
    old = await db["roles"].find_one_and_delete({"name": "editor"})
    await db["roles"].insert_one({**old, "_id": PydanticObjectId()})


RAW: dict[str, tuple[Raw, Reason]] = {
    "a role pulled": (_role_taken, Reason.ROLE_REVOKED),
    "all roles emptied": (_user(roles=[]), Reason.ROLE_REVOKED),
    "a role deleted": (_role_deleted, Reason.ROLE_DELETED),
    "a role replaced": (_role_replaced, Reason.ROLE_DELETED),
    "another hash": (_user(password_hash="other"), Reason.PASSWORD_CHANGED),
    "disabled": (_user(disabled_at=clock.now()), Reason.ACCOUNT_DISABLED),
    "account expired": (_user(closes_at=clock.now()), Reason.ACCOUNT_DISABLED),
    "the user deleted": (_user_deleted, Reason.ACCOUNT_DISABLED),
    "ended": (_session(ended_at=clock.now()), Reason.ENDED_BY_ADMIN),
    "ended with a reason": (
        _session(ended_at=clock.now(), ended_reason="password_changed"),
        Reason.PASSWORD_CHANGED,
    ),
    "ended with an unknown reason": (
        _session(ended_at=clock.now(), ended_reason="because"),
        Reason.ENDED_BY_ADMIN,
    ),
    "expired": (_session(expires_at=clock.now()), Reason.EXPIRED),
}


@pytest.mark.parametrize("write", RAW)
async def test_a_raw_write_ends_the_session_permanently(
    db: Database, ada: User, write: str
) -> None:
    change, reason = RAW[write]
    _, of_root = await sign_in(await reloaded(not_none(await User.by_username("root"))))
    session, token = await sign_in(ada)
    await principal_of(token)
    before = {name: await db[name].find({}).to_list(None) for name in ("users", "roles")}

    await change(db, ada, session)
    assert (await ended_session(token)).reason is reason
    stored = not_none(await Session.get(session.id))
    assert stored.ended_at is not None

    # The raw write is undone. The session has been checked since and stays ended.
    for name, documents in before.items():
        await db[name].delete_many({"_id": {"$nin": [document["_id"] for document in documents]}})
        for document in documents:
            await db[name].replace_one({"_id": document["_id"]}, document, upsert=True)
    await db["sessions"].update_one(
        {"_id": session.id}, {"$set": {"expires_at": clock.now() + HOUR}}
    )
    assert (await ended_session(token)).reason is reason
    await principal_of(of_root)


async def test_a_deleted_session_authenticates_no_user(db: Database, ada: User) -> None:
    session, token = await sign_in(ada)
    await db["sessions"].delete_one({"_id": session.id})
    assert await session_states.state_by_digest(digest_of(token)) is None
    assert await session_states.state_by_id(session.id) is None


async def test_a_raw_role_removal_ends_only_sessions_that_used_the_role(
    db: Database, ada: User
) -> None:
    moderator = await role("moderator")
    _, used = await sign_in(ada)
    _, idle = await sign_in(ada)
    await db["users"].update_one(
        {"_id": ada.id}, {"$push": {"roles": DBRef("roles", moderator.id)}}
    )
    assert "moderator" in (await principal_of(used)).roles
    await db["users"].update_one(
        {"_id": ada.id}, {"$pull": {"roles": DBRef("roles", moderator.id)}}
    )
    assert await end_reason(used) is Reason.ROLE_REVOKED
    # The other session never used the role.
    assert await end_reason(idle) is None


async def test_a_link_to_a_deleted_role_does_not_prevent_sign_in(db: Database, ada: User) -> None:
    _, before = await sign_in(ada)
    await db["roles"].delete_one({"name": "editor"})
    assert await end_reason(before) is Reason.ROLE_DELETED
    _, after = await sign_in(await reloaded(ada))
    assert (await principal_of(after)).roles == ("member",)


async def test_a_link_to_an_unknown_role_grants_no_permission(db: Database, ada: User) -> None:
    _, token = await sign_in(ada)
    unknown = DBRef("roles", PydanticObjectId())
    await db["users"].update_one({"_id": ada.id}, {"$push": {"roles": unknown}})
    found = await principal_of(token)
    assert found.roles == ("editor", "member")
    assert found.permissions == {"posts.write", "posts.moderate"}


async def test_a_raw_removal_of_permissions_applies_immediately(db: Database, ada: User) -> None:
    _, token = await sign_in(ada)
    await db["roles"].update_one(
        {"name": "editor"}, {"$set": {"permissions": ["posts.destroy", "users.read"]}}
    )
    assert (await principal_of(token)).permissions == {"posts.write", "users.read"}


# ---- time


@pytest.mark.parametrize(
    "times",
    [
        {"expires_at": timedelta(0)},
        {"expires_at": -MINUTE},
        {"seen_at": -HOUR / 2},
        {"seen_at": -HOUR},
    ],
    ids=["expired now", "long expired", "idle to the limit", "long idle"],
)
async def test_a_session_expires_at_its_end_or_when_idle(
    ada: User, times: dict[str, timedelta]
) -> None:
    session, token = await sign_in(ada)
    _, other = await sign_in(ada)
    await move(session, **times)
    # Lists omit it before its first check.
    assert session.id not in {each.id for each in await Session.of_user(ada.id)}
    assert session.id not in {each.id for each in (await active_page(Wanted()))[0]}
    assert (await ended_session(token)).reason is Reason.EXPIRED
    assert not_none(await Session.get(session.id)).ended_reason == Reason.EXPIRED
    await move(session, expires_at=HOUR, seen_at=timedelta(0))
    assert (await ended_session(token)).reason is Reason.EXPIRED
    await principal_of(other)


async def test_a_session_is_active_until_it_expires(ada: User) -> None:
    session, token = await sign_in(ada)
    await move(session, expires_at=MINUTE, seen_at=-HOUR / 2 + MINUTE)
    await principal_of(token)
    assert session.id in {each.id for each in await Session.of_user(ada.id)}


async def test_the_last_use_of_a_session_is_written_at_most_once_a_minute(ada: User) -> None:
    session, token = await sign_in(ada)
    first = await principal_of(token)
    seen = LastSeenWriter()
    seen.note(first, lambda: "192.0.2.8")
    await seen.stop()
    assert (await principal_of(token)).seen_at == first.seen_at

    await move(session, seen_at=-MINUTE)
    before = await principal_of(token)
    for address in ("192.0.2.8", "192.0.2.9"):
        seen.note(before, partial(str, address))
    await seen.stop()
    assert (await principal_of(token)).seen_at >= before.seen_at + MINUTE
    found = not_none(await Session.get(session.id))
    assert (found.ip, found.uses) == ("192.0.2.8", 1)


async def test_the_last_use_by_a_user_is_written_at_most_every_five_minutes(ada: User) -> None:
    async def seen_after(minutes: int) -> datetime | None:
        at = start + timedelta(minutes=minutes)
        await User.record_use({ada.id: at})
        return not_none(await User.get(ada.id)).seen_at

    assert ada.seen_at is None
    seen = LastSeenWriter()
    seen.note(await principal_of((await sign_in(ada))[1]), lambda: None)
    await seen.stop()
    start = not_none(not_none(await User.get(ada.id)).seen_at)
    assert [await seen_after(minutes) for minutes in (-9, 5, 6, 7)] == [
        *(start, start),
        *(start + timedelta(minutes=6), start + timedelta(minutes=6)),
    ]


async def test_an_ended_session_is_not_marked_as_used_or_online(db: Database, ada: User) -> None:
    session, _ = await sign_in(ada)
    await session.end(Reason.SIGNED_OUT, by=acting(ada))
    before = await db["sessions"].find_one({"_id": session.id})
    await Session.record_use({session.id: (clock.now(), "192.0.2.8")})
    await Session.mark_online([session.id], until=clock.now() + HOUR)
    assert await db["sessions"].find_one({"_id": session.id}) == before


async def test_the_first_end_of_a_session_is_kept(ada: User) -> None:
    session, token = await sign_in(ada)
    await session.end(Reason.SIGNED_OUT, by=acting(ada))
    first = await ended_session(token)
    await ada.disable(by=SYSTEM)
    await ada.end_sessions(Reason.ENDED_BY_ADMIN, by=SYSTEM)
    assert await ended_session(token) == first
    assert (first.reason, first.by) == (Reason.SIGNED_OUT, "ada")
    assert first.message == "You signed out."


async def test_concurrent_checks_of_a_session_agree(db: Database, ada: User) -> None:
    session, token = await sign_in(ada)
    await db["users"].update_one({"_id": ada.id}, {"$set": {"roles": []}})
    seen = await concurrently(
        *(session_states.state_by_digest(digest_of(token)) for _ in range(20))
    )
    assert {type(each) for each in seen} == {EndedSession}
    assert {each.reason for each in seen if isinstance(each, EndedSession)} == {Reason.ROLE_REVOKED}
    assert not_none(await Session.get(session.id)).ended_reason == Reason.ROLE_REVOKED


async def test_many_sessions_are_checked_in_one_query(db: Database, ada: User) -> None:
    bob = await register("bob", "member")
    sessions = [await sign_in(user) for user in (ada, ada, bob)]
    await db["users"].update_one({"_id": ada.id}, {"$set": {"disabled_at": clock.now()}})
    ids = [session.id for session, _ in sessions]
    judged = {
        each.session_id: each
        for each in await session_states.states_matching({"_id": {"$in": ids}})
    }
    assert [isinstance(judged[i], EndedSession) for i in ids] == [True, True, False]


async def test_sign_ins_past_the_session_limit_end_the_oldest(ada: User) -> None:
    tokens = [(await sign_in(ada, at_most=3))[1] for _ in range(5)]
    ended = Reason.ENDED_BY_USER
    assert [await end_reason(token) for token in tokens] == [ended, ended, None, None, None]


async def test_ended_sessions_do_not_count_for_the_session_limit(ada: User) -> None:
    first, token = await sign_in(ada, at_most=2)
    second, _ = await sign_in(ada, at_most=2)
    await move(second, seen_at=-HOUR)
    await sign_in(ada, at_most=2)
    await principal_of(token)
    assert first.id in {session.id for session in await Session.of_user(ada.id)}


async def test_a_session_is_online_until_a_set_time(ada: User) -> None:
    session, _ = await sign_in(ada)
    assert not session.online
    for away, online in ((MINUTE, True), (-MINUTE, False)):
        await Session.mark_online([session.id], until=clock.now() + away)
        assert not_none(await Session.get(session.id)).online is online
