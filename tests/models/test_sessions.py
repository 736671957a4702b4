"""For whom a session speaks on a real database, whoever writes there and however."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from beanie import PydanticObjectId
from bson import DBRef

from quartapp import clock
from quartapp.authority import session_rule
from quartapp.authority.session_rule import Ended, Principal
from quartapp.db.mongo import Database
from quartapp.jobs.last_seen import LastSeenWriter
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import NOBODY
from quartapp.models.base.tokens import digest_of
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.policy import Permission
from tests.models.stories import (
    HOUR,
    acting,
    again,
    at_once,
    register,
    role,
    sign_in,
    some,
    why_over,
)

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def ada(db: Database) -> User:
    await register("root", "admin")
    await Role.add("editor", "", [Permission.POSTS_MODERATE], by=NOBODY)
    return await register("ada", "member", "editor")


async def speaks(token: str) -> Principal:
    standing = await session_rule.by_digest(digest_of(token))
    assert isinstance(standing, Principal)
    return standing


async def over(token: str) -> Ended:
    standing = await session_rule.by_digest(digest_of(token))
    assert isinstance(standing, Ended)
    return standing


async def move(session: Session, **times: timedelta) -> None:
    """Moves the session in time: these of its moments now lie so far from this one."""
    now = clock.now()
    assert await Session.change(
        {"_id": session.id}, {"$set": {name: now + away for name, away in times.items()}}
    )


async def test_a_session_speaks_for_its_user_by_its_token_alone(ada: User) -> None:
    session, token = await sign_in(ada)
    found = await speaks(token)
    assert found == await session_rule.by_id(session.id)
    assert (found.session_id, found.user_id, found.username) == (session.id, ada.id, "ada")
    assert found.roles == ("editor", "member")
    assert found.permissions == {"posts.write", "posts.moderate"}
    assert found.cursor == found.unread == 1
    for other in ("", token[:-1], token + "=", session.digest, digest_of(session.digest), "\0"):
        assert await session_rule.by_digest(digest_of(other)) is None
    assert await session_rule.by_id(PydanticObjectId()) is None


async def test_a_session_remembers_the_address_and_the_device(ada: User) -> None:
    session, _ = await sign_in(ada)
    found = await Session.get(session.id)
    assert found is not None
    assert (found.device, found.ip, found.remembered) == ("Firefox", "192.0.2.7", False)
    assert found.expires_at - found.created_at == HOUR
    assert found.idle_seconds == 1800


async def test_what_a_user_is_granted_arrives_in_place(ada: User) -> None:
    _, token = await sign_in(ada)
    before = await speaks(token)
    root = await User.by_username("root")
    assert root is not None
    await ada.grant(await role("moderator"), by=acting(root))
    after = await speaks(token)
    assert after.permissions - before.permissions == {"users.read"}
    assert after.version == before.version + 1
    assert after.changed_by == "root"


# ---- a mongo shell, or another service, writes past every verb


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


async def _role_made_anew(db: Database, *_: object) -> None:
    """A role of the same name with another id is another role."""
    old = await db["roles"].find_one_and_delete({"name": "editor"})
    await db["roles"].insert_one({**old, "_id": PydanticObjectId()})


RAW: dict[str, tuple[Raw, Reason]] = {
    "a role pulled": (_role_taken, Reason.ROLE_REVOKED),
    "all roles emptied": (_user(roles=[]), Reason.ROLE_REVOKED),
    "a role deleted": (_role_deleted, Reason.ROLE_DELETED),
    "a role made anew": (_role_made_anew, Reason.ROLE_DELETED),
    "another hash": (_user(password_hash="other"), Reason.PASSWORD_CHANGED),
    "disabled": (_user(disabled_at=clock.now()), Reason.ACCOUNT_DISABLED),
    "closed since": (_user(closes_at=clock.now()), Reason.ACCOUNT_DISABLED),
    "the user deleted": (_user_deleted, Reason.ACCOUNT_DISABLED),
    "ended": (_session(ended_at=clock.now()), Reason.ENDED_BY_ADMIN),
    "ended with a reason": (
        _session(ended_at=clock.now(), ended_reason="password_changed"),
        Reason.PASSWORD_CHANGED,
    ),
    "ended with a word": (
        _session(ended_at=clock.now(), ended_reason="because"),
        Reason.ENDED_BY_ADMIN,
    ),
    "expired": (_session(expires_at=clock.now()), Reason.EXPIRED),
}


@pytest.mark.parametrize("write", RAW)
async def test_a_raw_write_ends_the_session_for_its_reason_and_for_good(
    db: Database, ada: User, write: str
) -> None:
    change, reason = RAW[write]
    _, of_root = await sign_in(await again(some(await User.by_username("root"))))
    session, token = await sign_in(ada)
    await speaks(token)
    before = {name: await db[name].find({}).to_list(None) for name in ("users", "roles")}

    await change(db, ada, session)
    assert (await over(token)).reason is reason
    stored = some(await Session.get(session.id))
    assert stored.ended_at is not None

    # Everything that was taken is given back; the session has been looked at, and stays over.
    for name, documents in before.items():
        await db[name].delete_many({"_id": {"$nin": [document["_id"] for document in documents]}})
        for document in documents:
            await db[name].replace_one({"_id": document["_id"]}, document, upsert=True)
    await db["sessions"].update_one(
        {"_id": session.id}, {"$set": {"expires_at": clock.now() + HOUR}}
    )
    assert (await over(token)).reason is reason
    await speaks(of_root)


async def test_a_deleted_session_speaks_for_nobody(db: Database, ada: User) -> None:
    session, token = await sign_in(ada)
    await db["sessions"].delete_one({"_id": session.id})
    assert await session_rule.by_digest(digest_of(token)) is None
    assert await session_rule.by_id(session.id) is None


async def test_a_role_given_and_taken_by_hand_ends_the_session_that_acted_with_it(
    db: Database, ada: User
) -> None:
    moderator = await role("moderator")
    _, used = await sign_in(ada)
    _, idle = await sign_in(ada)
    await db["users"].update_one(
        {"_id": ada.id}, {"$push": {"roles": DBRef("roles", moderator.id)}}
    )
    assert "moderator" in (await speaks(used)).roles
    await db["users"].update_one(
        {"_id": ada.id}, {"$pull": {"roles": DBRef("roles", moderator.id)}}
    )
    assert await why_over(used) is Reason.ROLE_REVOKED
    # The other one never acted with it, so it has lost nothing.
    assert await why_over(idle) is None


async def test_a_link_to_a_role_that_is_gone_keeps_nobody_out(db: Database, ada: User) -> None:
    _, before = await sign_in(ada)
    await db["roles"].delete_one({"name": "editor"})
    assert await why_over(before) is Reason.ROLE_DELETED
    _, after = await sign_in(await again(ada))
    assert (await speaks(after)).roles == ("member",)


async def test_the_role_of_a_link_from_nowhere_allows_nothing(db: Database, ada: User) -> None:
    _, token = await sign_in(ada)
    ghost = DBRef("roles", PydanticObjectId())
    await db["users"].update_one({"_id": ada.id}, {"$push": {"roles": ghost}})
    found = await speaks(token)
    assert found.roles == ("editor", "member")
    assert found.permissions == {"posts.write", "posts.moderate"}


async def test_permissions_that_a_role_loses_by_hand_are_lost_at_once(
    db: Database, ada: User
) -> None:
    _, token = await sign_in(ada)
    await db["roles"].update_one(
        {"name": "editor"}, {"$set": {"permissions": ["posts.destroy", "users.read"]}}
    )
    assert (await speaks(token)).permissions == {"posts.write", "users.read"}


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
async def test_a_session_expires_by_its_end_or_by_idleness(
    ada: User, times: dict[str, timedelta]
) -> None:
    session, token = await sign_in(ada)
    _, other = await sign_in(ada)
    await move(session, **times)
    # Lists leave it out before anybody has looked at it.
    assert session.id not in {each.id for each in await Session.of_user(ada.id)}
    assert session.id not in {each.id for each in await Session.on_now()}
    assert (await over(token)).reason is Reason.EXPIRED
    assert some(await Session.get(session.id)).ended_reason == Reason.EXPIRED
    await move(session, expires_at=HOUR, seen_at=timedelta(0))
    assert (await over(token)).reason is Reason.EXPIRED
    await speaks(other)


async def test_a_session_lives_until_then(ada: User) -> None:
    session, token = await sign_in(ada)
    await move(session, expires_at=MINUTE, seen_at=-HOUR / 2 + MINUTE)
    await speaks(token)
    assert session.id in {each.id for each in await Session.of_user(ada.id)}


async def test_use_is_written_once_a_minute_at_most(ada: User) -> None:
    session, token = await sign_in(ada)
    first = await speaks(token)
    seen = LastSeenWriter()
    seen.note(first, lambda: "192.0.2.8")
    await seen.stop()
    assert (await speaks(token)).seen_at == first.seen_at

    await move(session, seen_at=-MINUTE)
    before = await speaks(token)
    for address in ("192.0.2.8", "192.0.2.9"):
        seen.note(before, partial(str, address))
    await seen.stop()
    assert (await speaks(token)).seen_at >= before.seen_at + MINUTE
    found = some(await Session.get(session.id))
    assert (found.ip, found.uses) == ("192.0.2.8", 1)


async def test_a_session_that_is_over_is_not_seen(db: Database, ada: User) -> None:
    session, _ = await sign_in(ada)
    await session.end(Reason.SIGNED_OUT, by=acting(ada))
    before = await db["sessions"].find_one({"_id": session.id})
    await Session.were_seen({session.id: (clock.now(), "192.0.2.8")})
    await Session.say_online([session.id], until=clock.now() + HOUR)
    assert await db["sessions"].find_one({"_id": session.id}) == before


async def test_an_end_is_dated_and_kept_whoever_comes_later(ada: User) -> None:
    session, token = await sign_in(ada)
    await session.end(Reason.SIGNED_OUT, by=acting(ada))
    first = await over(token)
    await ada.disable(by=NOBODY)
    await ada.end_sessions(Reason.ENDED_BY_ADMIN, by=NOBODY)
    assert await over(token) == first
    assert (first.reason, first.by) == (Reason.SIGNED_OUT, "ada")
    assert first.message == "You signed out."


async def test_many_who_look_at_once_agree(db: Database, ada: User) -> None:
    session, token = await sign_in(ada)
    await db["users"].update_one({"_id": ada.id}, {"$set": {"roles": []}})
    seen = await at_once(*(session_rule.by_digest(digest_of(token)) for _ in range(20)))
    assert {type(each) for each in seen} == {Ended}
    assert {each.reason for each in seen if isinstance(each, Ended)} == {Reason.ROLE_REVOKED}
    assert some(await Session.get(session.id)).ended_reason == Reason.ROLE_REVOKED


async def test_many_sessions_are_judged_in_one_question(db: Database, ada: User) -> None:
    bob = await register("bob", "member")
    sessions = [await sign_in(user) for user in (ada, ada, bob)]
    await db["users"].update_one({"_id": ada.id}, {"$set": {"disabled_at": clock.now()}})
    ids = [session.id for session, _ in sessions]
    judged = {each.session_id: each for each in await session_rule.standings({"_id": {"$in": ids}})}
    assert [isinstance(judged[i], Ended) for i in ids] == [True, True, False]


async def test_past_the_cap_the_oldest_sessions_end(ada: User) -> None:
    tokens = [(await sign_in(ada, at_most=3))[1] for _ in range(5)]
    ended = Reason.ENDED_BY_USER
    assert [await why_over(token) for token in tokens] == [ended, ended, None, None, None]


async def test_sessions_that_are_over_do_not_count_for_the_cap(ada: User) -> None:
    first, token = await sign_in(ada, at_most=2)
    second, _ = await sign_in(ada, at_most=2)
    await move(second, seen_at=-HOUR)
    await sign_in(ada, at_most=2)
    await speaks(token)
    assert first.id in {session.id for session in await Session.of_user(ada.id)}


async def test_who_is_online_is_so_until_a_moment(ada: User) -> None:
    session, _ = await sign_in(ada)
    assert not session.online
    for away, online in ((MINUTE, True), (-MINUTE, False)):
        await Session.say_online([session.id], until=clock.now() + away)
        assert some(await Session.get(session.id)).online is online
