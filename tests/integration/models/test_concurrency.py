"""Concurrent operations, repeated many times."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pymongo.errors import InvalidOperation

from quartapp.activities import ACCOUNT_CREATED, ACCOUNT_ENABLED, PASSWORD_CHANGED, ROLE_CREATED
from quartapp.authority import session_states
from quartapp.authority.session_rule import EndedSession
from quartapp.db import mongo
from quartapp.db.mongo import Database, OutcomeUnknown, Tx, transaction
from quartapp.jobs import role_deletions
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.administrators import LastAdministrator, active_administrators
from quartapp.models.accounts.one_time_token import (
    TokenSpent,
    issue_setup,
    make_first_administrator,
)
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.accounts.user import PasswordMoved, User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.tokens import digest_of
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles.refusals import RoleGone, RoleTaken
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from tests.integration.models.helpers import (
    acting,
    concurrently,
    end_reason,
    race,
    register,
    reloaded,
    role,
    role_names,
    sign_in,
)
from tests.people import until


def cases(word: str, number: int) -> str:
    """Return the word with the letters capitalized that are bits of the number."""
    return "".join(c.upper() if number >> i & 1 else c for i, c in enumerate(word))


@pytest.mark.parametrize("field", ["username", "email"])
@race(20, short=2)
async def test_fifty_concurrent_registrations_of_one_name_create_one_account(
    db: Database, field: str, rounds: range
) -> None:
    member = await role("member")
    for number in rounds:
        name = f"lovelace{number}"

        def want(i: int, name: str = name) -> tuple[str, str]:
            mixed = cases(name, i)
            return (
                (mixed, f"{i}@{name}.org")
                if field == "username"
                else (f"{name}-{i}", f"{mixed}@b.org")
            )

        made = await concurrently(
            *(register_account(*want(i), "hash", roles=[member], by=SYSTEM) for i in range(50)),
            unless=Taken,
        )
        assert len(made) == 1
    assert await db["users"].count_documents({}) == len(rounds)
    assert await Event.find({"verb": ACCOUNT_CREATED.audit}).count() == len(rounds)
    assert await Notice.find({}).count() == len(rounds)


async def test_a_taken_name_or_address_names_the_field(db: Database) -> None:
    await register("ada", "member")
    for name, email, field in (("ADA", "x@y.zz", "username"), ("eve", "Ada@Example.org", "email")):
        with pytest.raises(Taken) as taken:
            await register_account(name, email, "hash", roles=[], by=SYSTEM)
        assert taken.value.field == field


@pytest.mark.parametrize(
    ("administrators", "rounds"),
    [
        *((2, 4), (8, 1)),
        pytest.param(2, 20, marks=pytest.mark.long),
        pytest.param(8, 4, marks=pytest.mark.long),
        pytest.param(50, 1, marks=pytest.mark.long),
    ],
)
async def test_concurrent_demotions_leave_one_administrator(
    db: Database, administrators: int, rounds: int
) -> None:
    admin = await role("admin")
    people = [await register(f"admin{i}", "admin") for i in range(administrators)]
    for number in range(rounds):
        in_doubt: list[int] = []

        # Operators remove every administrator: without the lock none would be left.
        async def work(victim: int, number: int = number, in_doubt: list[int] = in_doubt) -> bool:
            user = people[victim]
            try:
                if (victim + number) % 2:
                    await user.disable(by=SYSTEM)
                else:
                    await user.revoke(admin, by=SYSTEM)
            except OutcomeUnknown:
                # Fifty removals run one after the other and must finish within five seconds.
                in_doubt.append(victim)
                return False
            return True

        works = [work(i) for i in range(administrators)]
        done = sum(await concurrently(*works, unless=LastAdministrator))
        left = await active_administrators()
        assert left == administrators - done
        assert 1 <= left <= 1 + len(in_doubt)
        for user in people:
            await user.enable(by=SYSTEM)
            await user.grant(admin, by=SYSTEM)


@race(20, short=4)
async def test_a_role_deleted_while_it_is_granted_has_no_holders(
    db: Database, rounds: range
) -> None:
    people = [await register(f"person{i}", "member") for i in range(6)]
    for number in rounds:
        editor = await Role.add(f"editor{number}", "", [], by=SYSTEM)
        grants = [user.grant(editor, by=SYSTEM) for user in people]
        works = [editor.remove(by=SYSTEM), *grants]
        random.Random(number).shuffle(works)  # so that the deletion comes at each position
        await concurrently(*works, unless=RoleGone)
        assert await Role.named(editor.name) is None
        await role_deletions.complete_all()
        assert await db["users"].count_documents({"roles.$id": editor.id}) == 0


async def test_concurrent_changes_of_a_users_roles_are_all_applied(
    db: Database,
) -> None:
    ada = await register("ada", "member")
    old = [await Role.add(f"old{i}", "", [], by=SYSTEM) for i in range(8)]
    new = [await Role.add(f"new{i}", "", [], by=SYSTEM) for i in range(8)]
    for each in old:
        await ada.grant(each, by=SYSTEM)
    before = await reloaded(ada)
    done = await concurrently(
        *(before.revoke(each, by=SYSTEM) for each in old),
        *(before.grant(each, by=SYSTEM) for each in new),
    )
    assert all(done)
    assert await role_names(ada) == {"member", *(each.name for each in new)}
    assert (await reloaded(ada)).authz_version == before.authz_version + 16


@pytest.mark.parametrize("verb", ["grant", "revoke", "disable", "enable", "end_sessions", "remove"])
async def test_a_concurrently_repeated_operation_takes_effect_once(db: Database, verb: str) -> None:
    root = await register("root", "admin")
    editor = await Role.add("editor", "", [], by=SYSTEM)
    ada = await register("ada", *([] if verb == "grant" else ["editor"]))
    if verb == "enable":
        await ada.disable(by=SYSTEM)
    await sign_in(ada)
    events, told = await Event.find({}).count(), (await reloaded(ada)).notice_seq

    async def do() -> Event | None:
        by = acting(root)
        match verb:
            case "grant" | "revoke":
                return await getattr(ada, verb)(editor, by=by)
            case "end_sessions":
                return await ada.end_sessions(Reason.ENDED_BY_ADMIN, by=by)
            case "remove":
                return await editor.remove(by=by)
            case _:
                return await getattr(ada, verb)(by=by)

    assert len([done for done in await concurrently(*(do() for _ in range(12))) if done]) == 1
    await concurrently(*(role_deletions.complete_all() for _ in range(3)))
    assert await Event.find({}).count() == events + 1
    assert (await reloaded(ada)).notice_seq == told + 1


async def test_concurrent_password_changes_succeed_once(db: Database) -> None:
    ada = await register("ada", "member")
    changed = await concurrently(
        *(ada.change_password(f"new {i}", by=acting(ada)) for i in range(12)), unless=PasswordMoved
    )
    assert changed == [None]
    assert await Event.find({"verb": PASSWORD_CHANGED.audit}).count() == 1


async def test_concurrent_set_ups_create_one_first_administrator(db: Database) -> None:
    token = await issue_setup()
    assert token is not None
    made = await concurrently(
        *(
            make_first_administrator(token, f"root{i}", f"{i}@b.org", "hash", by=SYSTEM)
            for i in range(20)
        ),
        unless=TokenSpent,
    )
    assert len(made) == 1
    assert await User.find({}).count() == await active_administrators() == 1


async def test_concurrent_creations_of_one_role_name_succeed_once(db: Database) -> None:
    made = await concurrently(
        *(Role.add(cases("editor", i), "", [], by=SYSTEM) for i in range(20)), unless=RoleTaken
    )
    assert len(made) == 1
    assert await Event.find({"verb": ROLE_CREATED.audit}).count() == 1


async def test_concurrent_notifications_are_numbered_without_gaps(db: Database) -> None:
    ada, bob = await register("ada"), await register("bob")

    async def tell(user: User, by: str) -> None:
        await transaction(lambda tx: user.notify(ACCOUNT_ENABLED, tx, by=by))

    await concurrently(
        *(tell(ada, f"{i}") for i in range(50)), *(tell(bob, f"{i}") for i in range(10))
    )
    for user, count in ((ada, 50), (bob, 10)):
        heard = await Notice.after(user.id, 1)  # The first one is the welcome.
        assert [notice.seq for notice in heard] == list(range(2, count + 2))
        assert {notice.data["by"] for notice in heard} == {f"{i}" for i in range(count)}
        assert (await reloaded(user)).notice_seq == count + 1


@pytest.mark.parametrize("at_most", [1, 5])
async def test_concurrent_sign_ins_stay_within_the_session_limit(
    db: Database, at_most: int
) -> None:
    ada, bob = await register("ada", "member"), await register("bob", "member")
    _, of_bob = await sign_in(bob)
    opened = await concurrently(*(sign_in(ada, at_most=at_most) for _ in range(25)))
    living = {session.id for session in await Session.of_user(ada.id)}
    assert len(living) == at_most
    by_age = sorted((session for session, _ in opened), key=lambda s: (s.created_at, s.id))
    assert living == {session.id for session in by_age[-at_most:]}
    assert await end_reason(of_bob) is None


@pytest.mark.parametrize("verb", ["revoke", "disable", "change_password", "remove"])
@race(20, short=4)
async def test_a_sign_in_during_a_revocation_does_not_survive_it(
    db: Database, verb: str, rounds: range
) -> None:
    await register("root", "admin")
    for number in rounds:
        editor = await Role.add(f"editor{number}", "", [], by=SYSTEM)
        ada = await register(f"ada{number}", "member", editor.name)

        async def take(ada: User = ada, editor: Role = editor) -> None:
            match verb:
                case "revoke":
                    await ada.revoke(editor, by=SYSTEM)
                case "disable":
                    await ada.disable(by=SYSTEM)
                case "change_password":
                    await ada.change_password("new", by=acting(ada))
                case _:
                    await editor.remove(by=SYSTEM)

        # Ada's document was read before, so each session starts with outdated rights.
        async def late(ada: User = ada, number: int = number) -> tuple[Session, str]:
            await asyncio.sleep(number * 0.0005)
            return await sign_in(ada)

        _, *opened = await asyncio.gather(take(), late(), late(), late())
        for _, token in opened:
            state = await session_states.state_by_digest(digest_of(token))
            # A sign-in after the deletion of the role succeeds without it.
            assert isinstance(state, EndedSession) or (
                verb == "remove" and state and state.roles == ("member",)
            )


@race(20, short=4)
async def test_a_hash_upgrade_does_not_revive_an_old_password(db: Database, rounds: range) -> None:
    for number in rounds:
        read = await register(f"ada{number}", "member")
        changer = await reloaded(read)

        async def enter(read: User = read) -> str:
            await read.upgrade_hash("the old password, hashed anew")
            return (await sign_in(read))[1]

        token, *_ = await asyncio.gather(
            enter(), changer.change_password("new", by=acting(read)), return_exceptions=True
        )
        assert isinstance(token, str)
        if (await reloaded(read)).password_hash == "new":
            assert await end_reason(token) is Reason.PASSWORD_CHANGED
        else:
            assert await end_reason(token) is None


async def test_a_revocation_does_not_wait_for_a_blocked_request_of_the_session(
    db: Database,
) -> None:
    """The request retries its transaction, because another one holds a document."""
    session, _ = await sign_in(await register("ada", "member"))
    await db["posts"].insert_one({"_id": "held"})
    touch = {"$inc": {"touched": 1}}
    tries = 0

    async def slow(tx: Tx) -> None:
        nonlocal tries
        await Session.change({"_id": session.id}, {"$inc": {"acts": 1}}, tx=tx)
        tries += 1
        # Keep the session's document locked for a moment.
        await asyncio.sleep(0.05)
        await db["posts"].update_one({"_id": "held"}, touch, session=tx)

    async def tried_twice() -> bool:
        return tries > 1

    async with await db.client.start_session() as holder, holder.start_transaction():
        await db["posts"].update_one({"_id": "held"}, touch, session=holder)
        request = asyncio.create_task(transaction(slow))
        await until(tried_twice)
        assert await session.end(Reason.ENDED_BY_ADMIN, by=SYSTEM)
        assert not request.done()
    await request


async def test_a_cancellation_during_the_commit_is_not_lost(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver aborts after it, which fails if the commit has just ended in its thread."""
    committing = asyncio.Event()

    class DriverSession:
        async def __aenter__(self) -> DriverSession:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        @asynccontextmanager
        async def start_transaction(self) -> AsyncIterator[None]:
            try:
                yield
            except asyncio.CancelledError:
                raise InvalidOperation("Cannot call abortTransaction")  # noqa: B904

        async def commit_transaction(self) -> None:
            committing.set()
            await asyncio.Event().wait()

    class Client:
        async def start_session(self) -> DriverSession:
            return DriverSession()

    async def work(_: Tx) -> None:
        pass

    monkeypatch.setattr(mongo, "_client", Client())
    task = asyncio.create_task(transaction(work))
    await committing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
