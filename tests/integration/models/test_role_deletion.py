"""Deleted roles: what ends at once, and how they are taken from their users."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from bson import DBRef

from quartapp import clock
from quartapp.activities import NOTIFICATION_BY_EMAIL, ROLE_DELETED
from quartapp.authority import session_rule, session_states
from quartapp.authority.session_rule import EndedSession, Principal
from quartapp.db.mongo import Database, Tx
from quartapp.jobs import role_deletions
from quartapp.models.accounts.user import User
from quartapp.models.audit import activity
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import SessionOver, authorized_transaction
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.tokens import digest_of
from quartapp.models.email.outbox import Mail
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts.post import Post
from quartapp.models.roles import deletion as deletions
from quartapp.models.roles import role as roles
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.policy import Permission
from tests.integration.models.helpers import (
    acting,
    concurrently,
    end_reason,
    not_none,
    race,
    register,
    reloaded,
    role,
    role_names,
    sign_in,
    stored,
    version_of,
)

TOLD = "root deleted the role crew, which you held."


@pytest.fixture
async def crew(db: Database) -> Role:
    await register("root", "admin")
    return await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)


@pytest.fixture
async def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletions, "BATCH", 2)


async def delete(crew: Role) -> Event:
    root = not_none(await User.by_username("root"))
    return not_none(await crew.remove(by=acting(root)))


async def state(token: str) -> session_rule.PrincipalOrEnded | None:
    return await session_states.state_by_digest(digest_of(token))


async def principal(token: str) -> Principal:
    found = await state(token)
    assert isinstance(found, Principal)
    return found


async def texts(user: User) -> list[str]:
    """Return the user's notifications without the welcome, oldest first."""
    return [notice.text for notice in (await Notice.after(user.id, 1))]


async def seconds_later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = clock.now() + timedelta(seconds=seconds)
    monkeypatch.setattr(clock, "now", lambda: now)


# ---- what ends at once


async def test_sessions_of_a_deleted_role_are_over_before_users_lose_it(
    db: Database, crew: Role
) -> None:
    ada = await register("ada", "member", "crew")
    session, token = await sign_in(ada)
    event = await delete(crew)
    found = await state(token)
    root = not_none(await User.by_username("root"))
    assert found == EndedSession(
        session.id, ada.id, Reason.ROLE_DELETED, "root", event.at, event.id, root.id
    )
    ended = not_none(await Session.get(session.id))
    assert (ended.ended_at, ended.ended_reason) == (event.at, "role_deleted")
    assert await state(token) == found, "the state that was stored is the same"


async def test_a_session_that_has_not_used_the_deleted_role_is_over_too(
    db: Database, crew: Role
) -> None:
    ada = await register("ada", "member")
    _, token = await sign_in(ada)
    await ada.grant(crew, by=SYSTEM)
    await delete(crew)
    assert await end_reason(token) is Reason.ROLE_DELETED


async def test_an_operation_under_way_is_not_committed_after_the_deletion(
    db: Database, crew: Role
) -> None:
    """The role is deleted after the transaction has taken its snapshot."""
    _, token = await sign_in(await register("ada", "member", "crew"))
    who = await principal(token)
    by = Actor(who.user_id, "ada", None, who.session_id, who.version, who.permissions)
    tries = 0

    async def work(tx: Tx) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await delete(crew)
        await db["posts"].insert_one({"title": "late"}, session=tx)

    with pytest.raises(SessionOver):
        await authorized_transaction(by, work)
    assert tries == 1
    assert await db["posts"].count_documents({}) == 0
    with pytest.raises(SessionOver):
        await Post.write("later", "…", by=by)


async def test_users_of_a_deleted_role_are_counted_up_to_a_limit(
    db: Database, crew: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "COUNTED_HOLDERS", 2)
    other = await Role.add("other", "", [], by=SYSTEM)
    for name, held in (("ada", ["crew"]), ("bob", ["crew", "other"]), ("eve", ["crew"])):
        await register(name, *held)
    assert (await delete(other)).details["holders"] == 1
    assert str(roles.holders_when_deleted(await delete(crew))) == "2+"


# ---- signing in before the job


async def test_signing_in_removes_a_deleted_role_before_the_job_does(
    db: Database, crew: Role
) -> None:
    ada = await register("ada", "member", "crew")
    await crew.edit(name="crew", description="", permissions=[], by=SYSTEM)
    session, old = await sign_in(ada)
    before = await principal(old)
    event = await delete(crew)
    _, token = await sign_in(ada)
    now = await principal(token)
    assert now.roles == ("member",)
    assert now.version > before.version
    assert (now.cursor, await texts(ada)) == (before.cursor + 1, [TOLD])
    assert event.id in [each.id for each in await activity.page(ada.id, before=None, limit=9)]
    ended = not_none(await Session.get(session.id))
    assert ended.ended_event is not None
    assert (ended.ended_reason, ended.ended_event.ref.id) == ("role_deleted", event.id)

    await role_deletions.complete_all()
    assert await principal(token) == now, "the job finds nothing to do for this user"
    assert await texts(ada) == [TOLD]


@race(20, short=4)
async def test_a_sign_in_during_the_deletion_of_a_role_has_no_role(
    db: Database, rounds: range
) -> None:
    for number in rounds:
        crew = await Role.add(f"crew{number}", "", [], by=SYSTEM)
        ada = await register(f"ada{number}", "member", crew.name)
        _, *opened = await concurrently(
            crew.remove(by=SYSTEM), *(sign_in(ada) for _ in range(4)), role_deletions.complete_all()
        )
        await role_deletions.complete_all()
        for found in opened[:-1]:
            assert isinstance(found, tuple)
            standing = await state(found[1])
            if isinstance(standing, Principal):
                assert standing.roles == ("member",)
            else:
                assert isinstance(standing, EndedSession)
                assert standing.reason is Reason.ROLE_DELETED
                assert standing.event is not None
        assert len(await texts(ada)) == 1
        _, token = await sign_in(ada)
        assert isinstance(await state(token), Principal)


# ---- the job


async def test_the_job_takes_the_role_from_each_user_once(
    db: Database, crew: Role, small_batches: None
) -> None:
    people = [await register(f"person{i}", "member", "crew") for i in range(5)]
    tokens = [(await sign_in(user))[1] for user in people]
    event = await delete(crew)
    await concurrently(*(role_deletions.complete_all() for _ in range(3)))
    await role_deletions.complete_all()
    for user, token in zip(people, tokens, strict=True):
        found = await reloaded(user)
        assert [link.ref.id for link in found.roles] == [(await role("member")).id]
        assert found.common_events == [event.id]
        assert await texts(user) == [TOLD]
        assert await end_reason(token) is Reason.ROLE_DELETED
    assert await Session.find({"ended_at": None}).count() == 0
    assert not_none(await RoleDeletion.get(crew.id)).settled_at is not None


async def test_another_worker_continues_after_a_crash(
    db: Database, crew: Role, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [await register(f"person{i}", "member", "crew") for i in range(5)]
    await delete(crew)
    real, batches = RoleDeletion.remove_role_from_batch, 0

    async def dying(self: RoleDeletion) -> bool:
        nonlocal batches
        batches += 1
        if batches == 2:
            raise ConnectionError
        return await real(self)

    with monkeypatch.context() as patch:
        patch.setattr(RoleDeletion, "remove_role_from_batch", dying)
        with pytest.raises(ConnectionError):
            await role_deletions.complete_all()
    assert [len(await texts(user)) for user in people].count(1) == 2
    await role_deletions.complete_all()
    assert [len(await texts(user)) for user in people].count(1) == 2, "it is still claimed"
    await seconds_later(monkeypatch, deletions.CLAIM.total_seconds())
    await role_deletions.complete_all()
    for user in people:
        assert await role_names(user) == {"member"}
        assert await texts(user) == [TOLD]


async def test_a_worker_that_has_lost_its_claim_stops(
    db: Database, crew: Role, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        await register(f"person{i}", "crew")
    await delete(crew)
    slow = not_none(await RoleDeletion.claim())
    await seconds_later(monkeypatch, deletions.CLAIM.total_seconds())
    assert await RoleDeletion.claim()
    assert not await role_deletions.complete(slow)
    assert not_none(await RoleDeletion.get(crew.id)).settled_at is None
    assert await db["users"].count_documents({"roles.$id": crew.id}) == 3


# ---- other programs


async def test_users_keep_the_link_to_a_role_that_another_program_deleted(
    db: Database, crew: Role
) -> None:
    ada = await register("ada", "member", "crew")
    session, _ = await sign_in(ada)
    before = await stored(ada)
    await db["roles"].delete_one({"_id": crew.id})
    await RoleDeletion.store_external(crew.id)
    await role_deletions.complete_all()
    ended = not_none(await Session.get(session.id))
    assert (ended.ended_reason, ended.ended_by, ended.ended_event) == ("role_deleted", None, None)
    assert await stored(ada) == before
    _, token = await sign_in(ada)
    assert (await principal(token)).roles == ("member",)


async def test_noting_a_deletion_keeps_what_the_application_has_stored(
    db: Database, crew: Role
) -> None:
    event = await delete(crew)
    deletion = not_none(await RoleDeletion.get(crew.id))
    before = await stored(deletion)
    await RoleDeletion.store_external(crew.id)
    assert await stored(deletion) == before
    assert before["event"].id == event.id
    assert event.verb == ROLE_DELETED.audit


async def test_users_of_a_role_that_was_restored_keep_it(db: Database, crew: Role) -> None:
    ada = await register("ada", "member", "crew")
    before = await stored(crew)
    await delete(crew)
    await db["roles"].insert_one(before)
    await role_deletions.complete_all()
    assert await role_names(ada) == {"member", "crew"}
    _, token = await sign_in(ada)
    assert (await principal(token)).roles == ("crew", "member")
    event = await delete(await role("crew"))
    await role_deletions.complete_all()
    assert (await reloaded(ada)).common_events == [event.id]


async def test_the_name_of_an_erased_user_is_not_in_later_notifications(
    db: Database, crew: Role
) -> None:
    ada = await register("ada", "crew")
    await delete(crew)
    root = not_none(await User.by_username("root"))
    await User.change({"_id": root.id}, {"$set": {"erasing_until": clock.now()}})
    await role_deletions.complete_all()
    assert await texts(ada) == ["A deleted user deleted the role crew, which you held."]


# ---- versions


@pytest.fixture
async def observed(db: Database, crew: Role) -> AsyncIterator[list[int]]:
    """The versions that sessions of Ada have had, which must ascend."""
    versions: list[int] = []
    yield versions
    assert versions == sorted(set(versions))


async def test_the_version_rises_with_each_change_of_a_role(
    db: Database, crew: Role, observed: list[int]
) -> None:
    ada = await register("ada", "member")

    async def look() -> None:
        _, token = await sign_in(await reloaded(ada))
        observed.append((await principal(token)).version)

    await look()
    for permissions in ([], [Permission.USERS_READ]):
        await ada.grant(crew, by=SYSTEM)
        await look()
        for each in (permissions, [Permission.POSTS_MODERATE]):
            await crew.edit(name="crew", description="", permissions=each, by=SYSTEM)
            await look()
        await ada.revoke(crew, by=SYSTEM)
        await look()
    await ada.grant(crew, by=SYSTEM)
    await look()
    await crew.remove(by=SYSTEM)
    await look()
    assert len(observed) == 11


@pytest.mark.parametrize("loss", ["revoke", "delete"])
async def test_an_edit_while_the_role_is_taken_away_does_not_lower_the_version(
    db: Database, crew: Role, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """The role is edited after the transaction has taken its snapshot."""
    ada = await register("ada", "member", "crew")
    removal_of, hold, edited = Role.count_removal, roles.hold_roles, []

    async def edit(tx: Tx) -> None:
        if not edited:
            edited.append(True)
            assert await Role.get(crew.id, session=tx), "this read takes the snapshot"
            await crew.edit(name="crew", description="new", permissions=[], by=SYSTEM)

    async def before_removal(self: Role, tx: Tx) -> int | None:
        await edit(tx)
        return await removal_of(self, tx)

    async def before_lock(tx: Tx) -> None:
        await edit(tx)
        await hold(tx)

    if loss == "revoke":
        monkeypatch.setattr(Role, "count_removal", before_removal)
    else:
        monkeypatch.setattr(roles, "hold_roles", before_lock)
    before = await version_of(ada)
    await (ada.revoke(crew, by=SYSTEM) if loss == "revoke" else crew.remove(by=SYSTEM))
    await role_deletions.complete_all()
    assert edited
    assert await version_of(ada) == before + 2


async def test_a_role_edited_by_hand_is_numbered_once(db: Database, crew: Role) -> None:
    await db["roles"].update_one({"_id": crew.id}, {"$set": {"permissions": []}})
    for _ in range(3):
        await Role.raise_version(crew.id, seen=0, version=1)
    found = await role("crew")
    assert (found.version, found.changed_by) == (1, None)


async def test_a_link_by_hand_to_a_deleted_role_is_removed_at_sign_in(
    db: Database, crew: Role
) -> None:
    ada = await register("ada", "member")
    await delete(crew)
    await role_deletions.complete_all()
    await db["users"].update_one({"_id": ada.id}, {"$push": {"roles": DBRef("roles", crew.id)}})
    _, token = await sign_in(await reloaded(ada))
    assert (await principal(token)).roles == ("member",)
    assert await role_names(ada) == {"member"}


async def test_users_who_chose_so_are_told_by_email(db: Database, crew: Role) -> None:
    ada, bob = await register("ada", "crew"), await register("bob", "crew")
    await User.change({"_id": ada.id}, {"$set": {"preferences.emailed": ["roles"]}})
    root = not_none(await User.by_username("root"))
    await crew.remove(by=acting(root))
    await role_deletions.complete_all()
    queued = await Mail.find({"letter": NOTIFICATION_BY_EMAIL.email_kind}).to_list()
    assert [(mail.user_id, mail.data["notification_kind"]) for mail in queued] == [
        (ada.id, ROLE_DELETED.notification_kind)
    ]
    assert [notice.text for notice in await Notice.after(bob.id, 1)] == [TOLD]
