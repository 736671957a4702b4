"""Roles that were granted for a limited time: until when they count, and what follows."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from quartapp import clock
from quartapp.activities import ROLE_GRANTED_UNTIL, ROLE_REVOKED
from quartapp.authority import session_states
from quartapp.authority.change_stream import Change
from quartapp.authority.session_rule import EndedSession, Principal
from quartapp.db.mongo import Database, Tx
from quartapp.i18n.times import format_time
from quartapp.jobs.role_expiry import RoleExpiry, expire_grants, warn_users
from quartapp.models.accounts import account_expiry, role_expiry
from quartapp.models.accounts.administrators import LastAdministrator, active_administrators
from quartapp.models.accounts.bulk_action import Action, Outcome
from quartapp.models.accounts.preview import preview
from quartapp.models.accounts.role_ends import RoleEnd
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.undo import NotUndone, undo
from quartapp.models.authorization.privileges import MissingPermission
from quartapp.models.authorization.transaction import SessionOver, authorized_transaction
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.references import role_ref
from quartapp.models.base.tokens import digest_of
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import EndDetail, Reason
from quartapp.policy import Permission
from tests.integration.models.helpers import (
    acting,
    concurrently,
    end_reason,
    lasting_administrators,
    not_none,
    race,
    register,
    reloaded,
    role,
    role_names,
    sign_in,
    version_of,
)

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


def ahead(hours: float = 2) -> datetime:
    return clock.now() + hours * HOUR


async def set_end(user: User, name: str, until: datetime) -> User:
    """Write the end of the user's role into the database."""
    end = RoleEnd(role=(await role(name)).id, until=until)
    await User.change({"_id": user.id}, {"$set": {"role_ends": [end.model_dump()]}})
    return await reloaded(user)


async def expire(user: User, name: str = "moderator") -> User:
    return await set_end(user, name, clock.now() - SECOND)


async def principal(token: str) -> Principal:
    state = await session_states.state_by_digest(digest_of(token))
    assert isinstance(state, Principal)
    return state


async def ended(token: str) -> EndedSession:
    state = await session_states.state_by_digest(digest_of(token))
    assert isinstance(state, EndedSession)
    return state


async def recorded(user: User) -> list[tuple[str, datetime | None]]:
    """Return the audit names of what happened to the user's roles, each with the end."""
    events = await Event.find({"subject.$id": user.id}, sort="_id").to_list()
    return [(e.verb, e.details.get("until")) for e in events if e.verb.startswith("role.")]


async def nothing(tx: Tx) -> None:
    """Write nothing, as the work of a transaction."""


async def told(user: User) -> list[str]:
    """Return the texts of the user's notifications but for the welcome."""
    return [notice.text for notice in await Notice.after(user.id, 1)]


async def test_a_grant_with_an_end_counts_until_then(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    _, token = await sign_in(ada)
    until = ahead()
    event = await ada.grant(await role("moderator"), by=acting(root), until=until)
    assert event is not None
    assert event.verb == ROLE_GRANTED_UNTIL.audit
    state = await principal(token)
    assert state.roles == ("member", "moderator")
    assert Permission.POSTS_MODERATE in state.permissions
    short = format_time(until)
    assert await told(ada) == [f"root gave you the role moderator until {short}."]
    await expire(ada)
    over = await ended(token)
    assert over.reason is Reason.ROLE_REVOKED
    assert over.message == "One of your roles has expired. Sign in again to continue."
    assert (over.by, over.event) == (None, None)


async def test_the_cached_state_lasts_until_the_role_ends(db: Database) -> None:
    ada = await register("ada", "member")
    _, token = await sign_in(ada)
    await ada.grant(await role("moderator"), by=SYSTEM, until=clock.now() + 30 * SECOND)
    assert 0 < (await principal(token)).seconds_left <= 30
    await set_end(ada, "admin", ahead(0))
    assert (await principal(token)).seconds_left > 30, "an end without its role means nothing"


async def test_a_session_that_never_used_the_role_ends_without_a_job_too(db: Database) -> None:
    ada = await register("ada", "member")
    session, token = await sign_in(ada)
    moderator = await role("moderator")
    await User.change({"_id": ada.id}, {"$push": {"roles": role_ref(moderator.id)}})
    ada = await expire(ada)
    by = Actor(ada.id, "ada", None, session.id, await version_of(ada), frozenset())
    with pytest.raises(SessionOver):
        await authorized_transaction(by, nothing)
    over = await ended(token)
    assert (over.reason, over.because) == (Reason.ROLE_REVOKED, EndDetail.ROLE_EXPIRED)
    assert await recorded(ada) == [], "no job has run"
    # Signing in records the expiry, and the new session stays when the job runs afterwards.
    _, later = await sign_in(ada)
    assert (await principal(later)).roles == ("member",)
    await expire_grants()
    assert (await principal(later)).roles == ("member",)
    assert await recorded(ada) == [(ROLE_REVOKED.audit, None)]


@pytest.mark.parametrize(
    "junk", ["soon", [{"role": "moderator"}], [None, 7, {"until": 3}], {"role": 1}, None]
)
async def test_malformed_ends_are_ignored(db: Database, junk: Any) -> None:
    ada = await register("ada", "member", "moderator")
    _, token = await sign_in(ada)
    await User.change({"_id": ada.id}, {"$set": {"role_ends": junk}})
    assert (await principal(token)).roles == ("member", "moderator")
    assert (await reloaded(ada)).ends == {}


async def test_an_operation_that_relies_on_an_expired_role_is_refused(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "admin")
    eve = await register("eve", "member")
    session, token = await sign_in(ada)
    state = await principal(token)
    by = Actor(ada.id, "ada", None, session.id, state.version, state.permissions)
    await expire(ada, "admin")
    with pytest.raises(SessionOver):
        await eve.disable(by=by)
    with pytest.raises(MissingPermission):
        await eve.grant(await role("moderator"), by=acting(ada))
    with pytest.raises(MissingPermission):
        await root.disable(by=acting(ada))
    # Nobody needs the permissions of an expired role to manage the user who had it.
    helper = await register("helper", "member")
    assert await ada.disable(by=acting(helper))


async def test_granting_again_changes_the_end(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    _, token = await sign_in(ada)
    moderator, by = await role("moderator"), acting(root)
    first, second = ahead(2), ahead(1)
    assert await ada.grant(moderator, by=by, until=first)
    assert await ada.grant(moderator, by=by, until=first) is None
    version = await version_of(ada)
    assert await ada.grant(moderator, by=by, until=second)
    assert (await reloaded(ada)).ends == {moderator.id: second}
    assert await ada.grant(moderator, by=by)
    assert (await reloaded(ada)).ends == {}
    assert await ada.grant(moderator, by=by) is None
    assert await ada.grant(moderator, by=by, until=first), "a grant can be limited later"
    assert await version_of(ada) == version
    assert await end_reason(token) is None
    assert await recorded(ada) == [
        ("role.granted_until", first),
        ("role.end_changed", second),
        ("role.end_removed", None),
        ("role.end_changed", first),
    ]
    short = [format_time(at) for at in (first, second)]
    assert await told(ada) == [
        f"root gave you the role moderator until {short[0]}.",
        f"root changed how long you have the role moderator: until {short[1]}.",
        "root removed the end of your role moderator. You keep it.",
        f"root changed how long you have the role moderator: until {short[0]}.",
    ]


async def test_revoking_a_role_removes_its_end(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    moderator = await role("moderator")
    await ada.grant(moderator, by=acting(root), until=ahead())
    assert await ada.revoke(moderator, by=acting(root))
    assert (await reloaded(ada)).role_ends == []
    await ada.grant(moderator, by=acting(root))
    assert (await reloaded(ada)).ends == {}


async def test_undoing_a_revocation_restores_the_end(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    moderator, until = await role("moderator"), ahead()
    granted = await ada.grant(moderator, by=acting(root), until=until)
    event = not_none(await ada.revoke(moderator, by=acting(root)))
    assert await undo(event, by=acting(root))
    assert (await reloaded(ada)).ends == {moderator.id: until}
    with pytest.raises(NotUndone, match="changed again"):
        await undo(not_none(granted), by=acting(root))
    again = not_none(await ada.revoke(moderator, by=acting(root)))
    again.details["end"] = clock.now().isoformat()
    with pytest.raises(NotUndone, match="ended by now"):
        await undo(again, by=acting(root))


async def test_an_end_left_by_another_program_does_not_limit_a_new_grant(db: Database) -> None:
    ada = await register("ada", "member")
    await expire(ada)
    await ada.grant(await role("moderator"), by=SYSTEM)
    assert (await reloaded(ada)).role_ends == []
    assert await role_names(ada) == {"member", "moderator"}


async def test_granting_again_does_not_revive_sessions_of_an_expired_grant(db: Database) -> None:
    ada = await register("ada", "member", "moderator")
    _, token = await sign_in(ada)
    await expire(ada)
    await ada.grant(await role("moderator"), by=SYSTEM)
    over = await ended(token)
    assert over.reason is Reason.ROLE_REVOKED
    assert await recorded(ada) == [("role.revoked", None), ("role.granted", None)]


@pytest.mark.parametrize("workers", [1, 8])
async def test_concurrent_workers_record_an_expiry_once(db: Database, workers: int) -> None:
    ada = await register("ada", "member", "moderator")
    _, first = await sign_in(ada)
    _, second = await sign_in(ada)
    version = await version_of(ada)
    ada = await expire(ada)
    await concurrently(*(expire_grants() for _ in range(workers)))
    assert await role_names(ada) == {"member"}
    found = await reloaded(ada)
    assert found.role_ends == []
    assert found.authz_version > version
    (event,) = await Event.find({"subject.$id": ada.id, "verb": ROLE_REVOKED.audit}).to_list()
    assert event.automatic
    assert event.details["role"] == "moderator"
    for token in (first, second):
        over = await ended(token)
        assert (over.reason, over.event, over.by) == (Reason.ROLE_REVOKED, event.id, None)
        assert over.message.startswith("One of your roles has expired.")
    assert await told(ada) == ["Your role moderator has expired."]
    assert await role_expiry.due() == []


async def test_a_failed_expiry_does_not_stop_the_others(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [await expire(await register(n, "moderator")) for n in ("ada", "bob", "eve")]
    expires = User.expire_grant

    async def fails(self: User, end: RoleEnd) -> Event | None:
        if self.username == "bob":
            raise OSError("not this one")
        return await expires(self, end)

    monkeypatch.setattr(User, "expire_grant", fails)
    await expire_grants()
    assert [await role_names(user) for user in people] == [set(), {"moderator"}, set()]


async def test_an_extended_grant_does_not_expire(db: Database) -> None:
    ada = await expire(await register("ada", "moderator"))
    (found,) = await role_expiry.due()
    await set_end(ada, "moderator", ahead())
    assert await found.user.expire_grant(found.end) is None
    assert await role_names(ada) == {"moderator"}


async def test_an_end_without_its_role_is_dropped_when_it_has_passed(db: Database) -> None:
    ada = await expire(await register("ada", "member"))
    await expire_grants()
    assert (await reloaded(ada)).role_ends == []
    assert await recorded(ada) == []


async def test_signing_in_records_the_expiry_before_the_job_does(db: Database) -> None:
    ada = await register("ada", "member", "moderator")
    _, old = await sign_in(ada)
    ada = await expire(ada)
    _, token = await sign_in(ada)
    assert await told(ada) == ["Your role moderator has expired."]
    await expire_grants()
    assert (await principal(token)).roles == ("member",)
    assert (await ended(old)).reason is Reason.ROLE_REVOKED
    assert await recorded(ada) == [("role.revoked", None)]


async def test_a_version_never_falls_when_a_role_ends(db: Database) -> None:
    ada = await register("ada", "member", "moderator")
    moderator = await role("moderator")
    await Role.change({"_id": moderator.id}, {"$set": {"version": 5}})
    _, token = await sign_in(ada)
    before = (await principal(token)).version
    ada = await expire(ada)
    _, later = await sign_in(ada)
    assert (await principal(later)).version > before


async def test_deleting_a_role_removes_its_ends(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    crew = await Role.add("crew", "", [Permission.POSTS_WRITE], by=acting(root))
    await ada.grant(crew, by=acting(root), until=ahead())
    await crew.remove(by=acting(root))
    await sign_in(await reloaded(ada))
    assert (await reloaded(ada)).role_ends == []


@pytest.mark.parametrize("by_application", [True, False])
async def test_a_deleted_role_does_not_expire_again(db: Database, by_application: bool) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    crew = await Role.add("crew", "", [Permission.POSTS_WRITE], by=acting(root))
    await ada.grant(crew, by=acting(root))
    if by_application:
        await crew.remove(by=acting(root))
    else:
        await Role.erase(crew.id)
    end = RoleEnd(role=crew.id, until=clock.now() - SECOND)
    await User.change({"_id": ada.id}, {"$set": {"role_ends": [end.model_dump()]}})
    await expire_grants()
    found = await reloaded(ada)
    assert (found.role_ends, len(found.roles)) == ([], 1)
    expired = {"verb": ROLE_REVOKED.audit, "subject.$id": ada.id}
    assert await Event.find(expired).count() == 0
    assert any("deleted the role crew" in text for text in await told(ada)) is by_application


# ---- warnings


async def test_a_user_is_warned_once_before_the_end(db: Database) -> None:
    ada = await register("ada", "member")
    moderator = await role("moderator")
    until = clock.now() + timedelta(minutes=5)
    await ada.grant(moderator, by=SYSTEM, until=until)
    await warn_users()
    assert len(await told(ada)) == 1, "too early"
    ((end,),) = [(await reloaded(ada)).role_ends]
    assert end.warn_at is not None
    assert timedelta(seconds=29) < until - end.warn_at <= timedelta(seconds=30)
    due = {"$set": {"role_ends.0.warn_at": clock.now()}}
    await User.change({"_id": ada.id}, due)
    await concurrently(*(warn_users() for _ in range(4)))
    short = format_time(until)
    assert (await told(ada))[1:] == [
        f"Your role moderator ends at {short}. You will then be signed out."
    ]
    assert (await reloaded(ada)).ends == {moderator.id: until}


async def test_a_long_grant_warns_ten_minutes_before() -> None:
    user = User(username="ada", email="ada@example.org", password_hash="x")
    until = ahead(24)
    assert RoleEnd.of(user.id, until).warn_at == until - timedelta(minutes=10)


async def test_the_job_wakes_for_warnings_and_ends(db: Database) -> None:
    assert await role_expiry.next_time() is None
    ada, bob, eve = [await register(name, "moderator") for name in ("ada", "bob", "eve")]
    await expire(ada)
    await set_end(bob, "moderator", ahead(2))
    assert await role_expiry.next_time() == (await reloaded(bob)).role_ends[0].until
    await eve.grant(await role("moderator"), by=SYSTEM, until=ahead(1))
    assert await role_expiry.next_time() == (await reloaded(eve)).role_ends[0].warn_at


@pytest.mark.parametrize(
    ("what", "wakes"),
    [
        (Change("update", "users", 1, {}, {"role_ends": []}), True),
        (Change("update", "users", 1, {}, {"role_ends.0.until": None}), True),
        (Change("update", "users", 1, {}, {}, ["role_ends"]), True),
        (Change("insert", "users", 1, {"username": "ada"}, {}), True),
        (Change("update", "users", 1, {}, {"roles": []}), False),
        (Change("insert", "posts", 1, {"title": "x"}, {}), False),
    ],
)
async def test_only_changes_of_ends_wake_the_job(what: Change, wakes: bool) -> None:
    job = RoleExpiry()
    job.on_change(what)
    assert job._wakeup.is_set() is wakes


# ---- always an administrator, and no escalation


async def test_one_administrator_without_an_end_must_remain(db: Database) -> None:
    admin = await role("admin")
    root = await register("root", "admin")
    with pytest.raises(LastAdministrator, match="last active"):
        await root.grant(admin, by=SYSTEM, until=ahead())
    grace = await register("grace", "member")
    await grace.grant(admin, by=SYSTEM, until=ahead())
    assert await active_administrators() == 2
    assert await lasting_administrators() == 1
    for verb in (
        root.grant(admin, by=SYSTEM, until=ahead(5)),
        root.revoke(admin, by=SYSTEM),
        root.disable(by=SYSTEM),
        account_expiry.set_expiry(root, clock.now().date(), by=SYSTEM),
    ):
        with pytest.raises(LastAdministrator, match="other administrators expire"):
            await verb
    assert (await reloaded(root)).role_ends == []
    assert await grace.grant(admin, by=SYSTEM, until=ahead(9)), "this one ends anyway"
    await expire(grace, "admin")
    assert await active_administrators() == 1
    with pytest.raises(LastAdministrator, match="last active"):
        await root.disable(by=SYSTEM)
    assert await grace.grant(admin, by=SYSTEM)
    assert await root.grant(admin, by=SYSTEM, until=ahead())


async def test_the_last_administrator_keeps_the_role_after_a_database_edit(db: Database) -> None:
    root, grace = await register("root", "admin"), await register("grace", "admin")
    for user in (root, grace):
        await expire(user, "admin")
    await expire_grants()
    kept = [user for user in (root, grace) if await role_names(user)]
    assert len(kept) == await lasting_administrators() == 1
    assert await recorded(kept[0]) == [("role.end_removed", None)]


async def test_an_end_without_its_role_is_removed_without_an_administrator(db: Database) -> None:
    ada = await expire(await register("ada", "member"), "admin")
    await expire_grants()
    assert (await reloaded(ada)).role_ends == []
    assert await recorded(ada) == []


@race(10, short=2)
async def test_concurrent_limits_leave_one_administrator_without_end(
    db: Database, rounds: range
) -> None:
    admin = await role("admin")
    people = [await register(f"admin{i}", "admin") for i in range(3)]
    for _ in rounds:
        done = await concurrently(
            people[0].grant(admin, by=SYSTEM, until=ahead()),
            people[1].revoke(admin, by=SYSTEM),
            people[2].grant(admin, by=SYSTEM, until=ahead(3)),
            unless=LastAdministrator,
        )
        assert len(done) == 2
        assert await lasting_administrators() == 1
        for user in people:
            await user.grant(admin, by=SYSTEM)


async def test_an_end_is_changed_only_with_the_permissions_of_the_role(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    powers = [Permission.USERS_MANAGE, Permission.POSTS_WRITE]
    helpdesk = await Role.add("helpdesk", "", powers, by=SYSTEM)
    helper = await register("helper", "helpdesk")
    moderator = await role("moderator")
    await ada.grant(moderator, by=acting(root), until=ahead())
    for until in (ahead(1), ahead(9), None):
        with pytest.raises(MissingPermission):
            await ada.grant(moderator, by=acting(helper), until=until)
    # The role that makes one a helper can be given for a time, but not by one whose own has ended.
    await ada.revoke(moderator, by=acting(root))
    assert await ada.grant(helpdesk, by=acting(helper), until=ahead())
    await expire(helper, "helpdesk")
    with pytest.raises(MissingPermission):
        await ada.grant(helpdesk, by=acting(helper), until=ahead(9))


@race(6, short=2)
async def test_an_expiry_races_with_an_extension(db: Database, rounds: range) -> None:
    """Either the grant expires and is given anew, or it is extended: the user holds the role."""
    moderator = await role("moderator")
    for number in rounds:
        ada = await register(f"ada{number}", "member", "moderator")
        _, token = await sign_in(ada)
        until = ahead()
        ada = await expire(ada)
        await concurrently(expire_grants(), ada.grant(moderator, by=SYSTEM, until=until))
        found = await reloaded(ada)
        assert found.ends == {moderator.id: until}
        assert moderator.id in found.role_ids
        assert await end_reason(token) is Reason.ROLE_REVOKED


async def test_the_preview_of_an_action_leaves_out_an_expired_role(db: Database) -> None:
    ada = await register("ada", "moderator")

    async def skipped(user: User) -> Outcome | None:
        seen = await preview(
            Action.DISABLE, None, [user], actor=None, lacks={Permission.POSTS_MODERATE}.intersection
        )
        return seen.planned[0].skipped

    assert await skipped(ada) is Outcome.MISSING_PERMISSION
    assert await skipped(await set_end(ada, "moderator", clock.now() - SECOND)) is None
