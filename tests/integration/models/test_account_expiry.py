"""Accounts are disabled when their expiry date is over (ASVS 7.4.2)."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from quartapp import clock
from quartapp.activities import (
    ACCOUNT_CREATED,
    ACCOUNT_DISABLED,
    EXPIRY_REMOVED,
    EXPIRY_SET,
    SIGNED_IN,
)
from quartapp.authority.change_stream import Change
from quartapp.db.mongo import Database
from quartapp.jobs.account_expiry import AccountExpiry, disable_expired
from quartapp.models.accounts import account_expiry
from quartapp.models.accounts.administrators import (
    LAST_ADMINISTRATOR,
    LastAdministrator,
    active_administrators,
)
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import SessionOver
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.notifications.notice import Notice
from quartapp.models.sessions.reason import Reason
from tests.integration.models.helpers import (
    acting,
    concurrently,
    end_reason,
    lasting_administrators,
    race,
    register,
    reloaded,
    role,
    sign_in,
)

DAY = timedelta(days=1)
FAR = date(2999, 12, 31)


def ahead(days: int = 30) -> date:
    return clock.now().date() + timedelta(days=days)


async def set_closes_at(user: User, at: datetime | None) -> User:
    """Write the time of the expiry into the database."""
    await User.change({"_id": user.id}, {"$set": {"closes_at": at}})
    return await reloaded(user)


async def expire(user: User, seconds: float = 1) -> User:
    return await set_closes_at(user, clock.now() - timedelta(seconds=seconds))


async def recorded(user: User) -> list[tuple[str, dict[str, Any]]]:
    events = await Event.find({"subject.$id": user.id}, sort="_id").to_list()
    return [(e.verb, e.details) for e in events if e.verb != ACCOUNT_CREATED.audit]


async def test_setting_moving_and_removing_an_expiry_date_ends_no_session(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    _, token = await sign_in(ada)
    by = acting(root)
    first, second = ahead(), ahead(31)
    assert await account_expiry.set_expiry(ada, first, by=by)
    assert await account_expiry.set_expiry(ada, first, by=by) is None, "the date is the same"
    closes = (await reloaded(ada)).closes_at
    assert closes is not None
    assert closes.date() == first + timedelta(days=1)
    assert (closes.hour, closes.minute, closes.second, closes.microsecond) == (0, 0, 0, 0)
    assert (await reloaded(ada)).expires_on == first
    assert await account_expiry.set_expiry(ada, second, by=by)
    assert (await reloaded(ada)).expires_on == second
    assert await account_expiry.remove_expiry(ada, by=by)
    assert await account_expiry.remove_expiry(ada, by=by) is None
    assert (await reloaded(ada)).expires_on is None
    assert await end_reason(token) is None
    assert (await reloaded(ada)).authz_version == ada.authz_version
    assert [verb for verb, _ in await recorded(ada)] == [
        SIGNED_IN.audit,
        EXPIRY_SET.audit,
        EXPIRY_SET.audit,
        EXPIRY_REMOVED.audit,
    ]
    told = [notice.text for notice in await Notice.after(ada.id, 1)]
    assert told == [
        f"root set your account's expiry date: it is disabled at the end of {first} (UTC).",
        f"root set your account's expiry date: it is disabled at the end of {second} (UTC).",
        "root removed your account's expiry date. It no longer expires.",
    ]


async def test_an_expired_account_is_refused_before_a_worker_disables_it(
    db: Database,
) -> None:
    ada = await register("ada", "member")
    session, token = await sign_in(ada)
    by = Actor(ada.id, "ada", None, session.id, ada.authz_version)
    closed = await expire(ada)
    assert closed.disabled
    with pytest.raises(SessionOver):
        await ada.end_sessions(Reason.ENDED_BY_USER, by=by, keep=session.id)
    assert await end_reason(token) is Reason.ACCOUNT_DISABLED
    _, late = await sign_in(ada)
    assert await end_reason(late) is Reason.ACCOUNT_DISABLED
    assert (await reloaded(ada)).disabled_at is None


@pytest.mark.parametrize("workers", [1, 12])
async def test_concurrent_workers_record_an_expiry_once(db: Database, workers: int) -> None:
    await register("root", "admin")
    ada = await register("ada", "member")
    session, _ = await sign_in(ada)
    ada = await expire(ada)
    done = await concurrently(*(account_expiry.disable_expired(ada) for _ in range(workers)))
    (event,) = [each for each in done if each]
    closed = await reloaded(ada)
    assert (closed.disabled_at, closed.closes_at) == (ada.closes_at, None)
    assert closed.authz_version == ada.authz_version + 1
    (over,) = await db["sessions"].find({}).to_list(None)
    assert (over["ended_reason"], over["ended_because"]) == ("account_disabled", "last_day")
    assert over["ended_event"].id == event.id
    assert (await recorded(ada))[1:] == [
        (ACCOUNT_DISABLED.audit, {"last_day": (ada.expires_on or FAR).isoformat()})
    ]
    (told,) = await Notice.after(ada.id, 1)
    assert told.text.startswith("Your account expired at the end of ")
    assert session.id == over["_id"]
    assert await account_expiry.due() == []


async def test_a_failed_expiry_does_not_stop_the_others(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register("root", "admin")
    people = [await expire(await register(name, "member")) for name in ("ada", "bob", "eve")]
    close = account_expiry.disable_expired

    async def fails(user: User) -> Event | None:
        if user.username == "bob":
            raise OSError("not this one")
        return await close(user)

    monkeypatch.setattr(account_expiry, "disable_expired", fails)
    await disable_expired()
    shut = [(await reloaded(user)).disabled_at is not None for user in people]
    assert shut == [True, False, True]


async def test_an_account_that_is_not_due_or_was_extended_stays_open(db: Database) -> None:
    await register("root", "admin")
    ada, bob = await register("ada", "member"), await register("bob", "member")
    await set_closes_at(bob, clock.now() + timedelta(seconds=30))
    ada = await expire(ada)
    assert [user.username for user in await account_expiry.due()] == ["ada"]
    await account_expiry.set_expiry(ada, ahead(), by=SYSTEM)
    assert await account_expiry.disable_expired(ada) is None
    assert await account_expiry.disable_expired(await reloaded(bob)) is not None, (
        "close does not check the time"
    )
    assert not (await reloaded(ada)).disabled


async def test_the_next_expiry_is_the_earliest_future_one(db: Database) -> None:
    assert await account_expiry.next_expiry() is None
    ada, bob, eve = [await register(name) for name in ("ada", "bob", "eve")]
    await account_expiry.set_expiry(ada, ahead(2), by=SYSTEM)
    await account_expiry.set_expiry(bob, ahead(1), by=SYSTEM)
    await expire(eve)
    assert await account_expiry.next_expiry() == account_expiry.end_of(ahead(1))


def test_an_expiry_date_is_between_today_and_ten_years_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = datetime(2026, 11, 28, 23, 59, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: now)
    first, last = now.date(), now.date() + account_expiry.AT_MOST
    possible = [account_expiry.is_possible(day) for day in (first - DAY, first, last, last + DAY)]
    assert possible == [False, True, True, False]


@pytest.mark.parametrize(
    ("what", "wakes"),
    [
        (Change("update", "users", 1, {}, {"closes_at": None}), True),
        (Change("insert", "users", 1, {"username": "ada"}, {}), True),
        (Change("update", "users", 1, {}, {"email": "ada@example.org"}), False),
        (Change("insert", "posts", 1, {"title": "x"}, {}), False),
    ],
)
async def test_only_changes_of_expiry_dates_wake_the_expiry_job(what: Change, wakes: bool) -> None:
    watch = AccountExpiry()
    watch.on_change(what)
    assert watch._wakeup.is_set() is wakes


async def test_enabling_an_account_removes_its_expiry_date(db: Database) -> None:
    await register("root", "admin")
    ada = await register("ada", "member")
    await account_expiry.set_expiry(ada, ahead(), by=SYSTEM)
    await ada.disable(by=SYSTEM)
    assert (await reloaded(ada)).expires_on is None
    assert await account_expiry.set_expiry(ada, ahead(), by=SYSTEM) is None, (
        "the account is disabled already"
    )
    assert await ada.enable(by=SYSTEM)
    assert (await expire(ada)).closes_at is not None
    assert await ada.enable(by=SYSTEM), "also an account that no worker has disabled yet"
    opened = await reloaded(ada)
    assert (opened.disabled, opened.closes_at) == (False, None)


async def test_one_administrator_without_an_expiry_date_must_remain(
    db: Database,
) -> None:
    admin = await role("admin")
    root = await register("root", "admin")
    with pytest.raises(LastAdministrator):
        await account_expiry.set_expiry(root, ahead(), by=SYSTEM)
    grace = await register("grace", "admin")
    await account_expiry.set_expiry(grace, ahead(), by=SYSTEM)
    assert await active_administrators() == 2
    for verb in (
        account_expiry.set_expiry(root, ahead(5), by=SYSTEM),
        account_expiry.set_expiry(root, ahead(60), by=SYSTEM),
        root.disable(by=SYSTEM),
        root.revoke(admin, by=SYSTEM),
    ):
        with pytest.raises(LastAdministrator, match="other administrators expire"):
            await verb
    assert (await reloaded(root)).closes_at is None
    # The date of an administrator who expires anyway may change.
    assert await account_expiry.set_expiry(grace, ahead(90), by=SYSTEM)
    await expire(grace)
    assert await active_administrators() == 1
    with pytest.raises(LastAdministrator, match="last active"):
        await root.disable(by=SYSTEM)
    assert await grace.enable(by=SYSTEM)
    assert await account_expiry.set_expiry(root, ahead(5), by=SYSTEM)


@pytest.mark.parametrize("administrators", [2, 6])
@race(10, short=2)
async def test_concurrent_removals_leave_one_administrator_without_expiry(
    db: Database, administrators: int, rounds: range
) -> None:
    admin = await role("admin")
    people = [await register(f"admin{i}", "admin") for i in range(administrators)]
    for number in rounds:
        dice = random.Random(number)

        def remove(user: User, dice: random.Random = dice) -> Any:
            return dice.choice(
                [
                    lambda: user.disable(by=SYSTEM),
                    lambda: user.revoke(admin, by=SYSTEM),
                    lambda: account_expiry.set_expiry(user, ahead(dice.randint(1, 9)), by=SYSTEM),
                    lambda: account_expiry.set_expiry(user, ahead(5), by=SYSTEM),
                ]
            )()

        done = await concurrently(*(remove(user) for user in people), unless=LastAdministrator)
        assert len(done) == administrators - 1
        assert await lasting_administrators() == 1
        for user in people:
            if (await reloaded(user)).closes_at:
                await expire(user)
        await concurrently(
            *(
                account_expiry.disable_expired(u)
                for u in await account_expiry.due()
                for _ in range(2)
            )
        )
        assert await active_administrators() == 1
        for user in people:
            await user.enable(by=SYSTEM)
            await user.grant(admin, by=SYSTEM)


async def test_the_last_administrator_does_not_expire_by_a_database_edit(
    db: Database,
) -> None:
    people = [await register(f"admin{i}", "admin") for i in range(3)]
    ada = await register("ada", "member")
    for number, user in enumerate(people):
        await expire(user, 10 - number)
    await expire(ada)
    assert await active_administrators() == 0
    due = await account_expiry.due()
    assert [user.username for user in due] == ["ada", "admin2", "admin1", "admin0"]
    # Four workers close each account concurrently.
    for user in due:
        await concurrently(*(account_expiry.disable_expired(user) for _ in range(4)))
    assert await active_administrators() == 1
    assert not (await reloaded(people[2])).disabled
    assert (await reloaded(ada)).disabled
    assert await recorded(people[2]) == [(EXPIRY_REMOVED.audit, {"why": LAST_ADMINISTRATOR})]
    for user in people[:2]:
        assert [verb for verb, _ in await recorded(user)] == [ACCOUNT_DISABLED.audit]


async def test_simultaneous_expiries_leave_one_administrator(db: Database) -> None:
    people = [await register(f"admin{i}", "admin") for i in range(4)]
    for _ in range(3):
        for user in people:
            await expire(user)
        due = await account_expiry.due()
        await concurrently(
            *(account_expiry.disable_expired(user) for user in due for _ in range(2))
        )
        assert await lasting_administrators() == 1
        for user in people:
            await user.enable(by=SYSTEM)


@race(10, short=2)
async def test_an_expiry_during_a_removal_leaves_one_administrator(
    db: Database, rounds: range
) -> None:
    """The other administrator is removed while the account expires."""
    admin = await role("admin")
    for number in rounds:
        root = await register(f"root{number}", "admin")
        grace = await expire(await register(f"grace{number}", "admin"))
        await concurrently(
            account_expiry.disable_expired(grace),
            root.revoke(admin, by=SYSTEM),
            root.disable(by=SYSTEM),
            account_expiry.set_expiry(root, ahead(), by=SYSTEM),
            unless=LastAdministrator,
        )
        assert await lasting_administrators() == 1
        await User.change_all({}, {"$set": {"roles": []}})


@pytest.mark.parametrize("days", [-400_000, -1, 3661])
async def test_expiry_dates_out_of_range_are_refused(days: int) -> None:
    assert not account_expiry.is_possible(
        date.min if days < -9999 else clock.now().date() + timedelta(days=days)
    )


async def test_an_account_may_expire_today_and_not_on_the_last_possible_date(db: Database) -> None:
    assert account_expiry.is_possible(clock.now().date())
    assert not account_expiry.is_possible(date.max)
    ada = await register("ada", "member")
    _, token = await sign_in(ada)
    await account_expiry.set_expiry(ada, clock.now().date(), by=SYSTEM)
    assert await end_reason(token) is None
