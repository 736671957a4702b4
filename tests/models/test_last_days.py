"""An account that closes when its last day is over (P7, ASVS 7.4.2)."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.db.mongo import Database
from quartapp.jobs.account_expiry import AccountExpiry, disable_expired
from quartapp.models.accounts import account_expiry
from quartapp.models.accounts.administrators import LastAdministrator, active_administrators
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event, Verb
from quartapp.models.authorization.transaction import SessionOver
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.notifications.notice import Notice
from quartapp.models.sessions.reason import Reason
from tests.models.stories import (
    acting,
    again,
    at_once,
    race,
    register,
    role,
    sign_in,
    why_over,
)

DAY = timedelta(days=1)
FAR = date(2999, 12, 31)


def ahead(days: int = 30) -> date:
    return clock.now().date() + timedelta(days=days)


async def move(user: User, at: datetime | None) -> User:
    """The moment of the closing, as a hand in the database writes it."""
    await User.change({"_id": user.id}, {"$set": {"closes_at": at}})
    return await again(user)


async def let_it_pass(user: User, seconds: float = 1) -> User:
    return await move(user, clock.now() - timedelta(seconds=seconds))


async def recorded(user: User) -> list[tuple[Verb, dict[str, Any]]]:
    events = await Event.find({"subject.$id": user.id}, sort="_id").to_list()
    return [(e.verb, e.details) for e in events if e.verb is not Verb.USER_REGISTERED]


async def test_a_last_day_is_set_told_moved_and_taken_back_and_ends_nothing(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    _, token = await sign_in(ada)
    by = acting(root)
    first, second = ahead(), ahead(31)
    assert await account_expiry.appoint(ada, first, by=by)
    assert await account_expiry.appoint(ada, first, by=by) is None, "it is so already"
    closes = (await again(ada)).closes_at
    assert closes is not None
    assert closes.date() == first + timedelta(days=1)
    assert (closes.hour, closes.minute, closes.second, closes.microsecond) == (0, 0, 0, 0)
    assert (await again(ada)).last_day == first
    assert await account_expiry.appoint(ada, second, by=by)
    assert (await again(ada)).last_day == second
    assert await account_expiry.lift(ada, by=by)
    assert await account_expiry.lift(ada, by=by) is None
    assert (await again(ada)).last_day is None
    assert await why_over(token) is None
    assert (await again(ada)).authz_version == ada.authz_version
    assert [verb for verb, _ in await recorded(ada)] == [
        Verb.SESSION_STARTED,
        Verb.LAST_DAY_SET,
        Verb.LAST_DAY_SET,
        Verb.LAST_DAY_LIFTED,
    ]
    told = [notice.text for notice in await Notice.after(ada.id, 1)]
    assert told == [
        f"root set your last day: {first}. Your account is disabled at its end.",
        f"root set your last day: {second}. Your account is disabled at its end.",
        "root took your last day back. Your account stays.",
    ]


async def test_the_moment_itself_closes_the_account_before_anybody_has_noticed(
    db: Database,
) -> None:
    ada = await register("ada", "member")
    session, token = await sign_in(ada)
    by = Actor(ada.id, "ada", None, session.id, ada.authz_version)
    closed = await let_it_pass(ada)
    assert closed.disabled
    with pytest.raises(SessionOver):
        await ada.end_sessions(Reason.ENDED_BY_USER, by=by, keep=session.id)
    assert await why_over(token) is Reason.ACCOUNT_DISABLED
    _, late = await sign_in(ada)
    assert await why_over(late) is Reason.ACCOUNT_DISABLED
    assert (await again(ada)).disabled_at is None


@pytest.mark.parametrize("workers", [1, 12])
async def test_it_is_put_on_record_once_however_many_see_it(db: Database, workers: int) -> None:
    await register("root", "admin")
    ada = await register("ada", "member")
    session, _ = await sign_in(ada)
    ada = await let_it_pass(ada)
    done = await at_once(*(account_expiry.close(ada) for _ in range(workers)))
    (event,) = [each for each in done if each]
    closed = await again(ada)
    assert (closed.disabled_at, closed.closes_at) == (ada.closes_at, None)
    assert closed.authz_version == ada.authz_version + 1
    (over,) = await db["sessions"].find({}).to_list(None)
    assert (over["ended_reason"], over["ended_because"]) == ("account_disabled", "last_day")
    assert over["ended_event"].id == event.id
    assert (await recorded(ada))[1:] == [
        (Verb.USER_DISABLED, {"last_day": (ada.last_day or FAR).isoformat()})
    ]
    (told,) = await Notice.after(ada.id, 1)
    assert told.text.startswith("Your last day was ")
    assert session.id == over["_id"]
    assert await account_expiry.due() == []


async def test_one_that_cannot_be_closed_does_not_keep_the_others(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register("root", "admin")
    people = [await let_it_pass(await register(name, "member")) for name in ("ada", "bob", "eve")]
    close = account_expiry.close

    async def fails(user: User) -> Event | None:
        if user.username == "bob":
            raise OSError("not this one")
        return await close(user)

    monkeypatch.setattr(account_expiry, "close", fails)
    await disable_expired()
    shut = [(await again(user)).disabled_at is not None for user in people]
    assert shut == [True, False, True]


async def test_who_is_not_due_or_was_given_more_time_meanwhile_stays(db: Database) -> None:
    await register("root", "admin")
    ada, bob = await register("ada", "member"), await register("bob", "member")
    await move(bob, clock.now() + timedelta(seconds=30))
    ada = await let_it_pass(ada)
    assert [user.username for user in await account_expiry.due()] == ["ada"]
    await account_expiry.appoint(ada, ahead(), by=NOBODY)
    assert await account_expiry.close(ada) is None
    assert await account_expiry.close(await again(bob)) is not None, (
        "close itself does not ask when"
    )
    assert not (await again(ada)).disabled


async def test_the_next_closing_is_the_soonest_to_come(db: Database) -> None:
    assert await account_expiry.next_closing() is None
    ada, bob, eve = [await register(name) for name in ("ada", "bob", "eve")]
    await account_expiry.appoint(ada, ahead(2), by=NOBODY)
    await account_expiry.appoint(bob, ahead(1), by=NOBODY)
    await let_it_pass(eve)
    assert await account_expiry.next_closing() == account_expiry.closing(ahead(1))


def test_a_last_day_is_today_or_within_ten_years(monkeypatch: pytest.MonkeyPatch) -> None:
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
async def test_news_of_days_wake_who_waits_for_them(what: Change, wakes: bool) -> None:
    watch = AccountExpiry()
    watch.heard(what)
    assert watch._news.is_set() is wakes


async def test_opening_an_account_again_leaves_no_last_day(db: Database) -> None:
    await register("root", "admin")
    ada = await register("ada", "member")
    await account_expiry.appoint(ada, ahead(), by=NOBODY)
    await ada.disable(by=NOBODY)
    assert (await again(ada)).last_day is None
    assert await account_expiry.appoint(ada, ahead(), by=NOBODY) is None, "it is closed as it is"
    assert await ada.enable(by=NOBODY)
    assert (await let_it_pass(ada)).closes_at is not None
    assert await ada.enable(by=NOBODY), "also one that nobody has put on record yet"
    opened = await again(ada)
    assert (opened.disabled, opened.closes_at) == (False, None)


async def test_an_administrator_with_a_last_day_counts_until_then_and_one_without_must_stay(
    db: Database,
) -> None:
    admin = await role("admin")
    root = await register("root", "admin")
    with pytest.raises(LastAdministrator):
        await account_expiry.appoint(root, ahead(), by=NOBODY)
    grace = await register("grace", "admin")
    await account_expiry.appoint(grace, ahead(), by=NOBODY)
    assert await active_administrators() == 2
    for verb in (
        account_expiry.appoint(root, ahead(5), by=NOBODY),
        account_expiry.appoint(root, ahead(60), by=NOBODY),
        root.disable(by=NOBODY),
        root.revoke(admin, by=NOBODY),
    ):
        with pytest.raises(LastAdministrator, match="last day"):
            await verb
    assert (await again(root)).closes_at is None
    # Who leaves anyway may leave sooner or later, or at once.
    assert await account_expiry.appoint(grace, ahead(90), by=NOBODY)
    await let_it_pass(grace)
    assert await active_administrators() == 1
    with pytest.raises(LastAdministrator, match="last active"):
        await root.disable(by=NOBODY)
    assert await grace.enable(by=NOBODY)
    assert await account_expiry.appoint(root, ahead(5), by=NOBODY)


@pytest.mark.parametrize("administrators", [2, 6])
@race(10, short=2)
async def test_of_administrators_who_send_each_other_away_one_stays_for_good(
    db: Database, administrators: int, rounds: range
) -> None:
    admin = await role("admin")
    people = [await register(f"admin{i}", "admin") for i in range(administrators)]
    for number in rounds:
        dice = random.Random(number)

        def away(user: User, dice: random.Random = dice) -> Any:
            return dice.choice(
                [
                    lambda: user.disable(by=NOBODY),
                    lambda: user.revoke(admin, by=NOBODY),
                    lambda: account_expiry.appoint(user, ahead(dice.randint(1, 9)), by=NOBODY),
                    lambda: account_expiry.appoint(user, ahead(5), by=NOBODY),
                ]
            )()

        done = await at_once(*(away(user) for user in people), unless=LastAdministrator)
        assert len(done) == administrators - 1
        assert await active_administrators(lasting=True) == 1
        for user in people:
            if (await again(user)).closes_at:
                await let_it_pass(user)
        await at_once(
            *(account_expiry.close(u) for u in await account_expiry.due() for _ in range(2))
        )
        assert await active_administrators() == 1
        for user in people:
            await user.enable(by=NOBODY)
            await user.grant(admin, by=NOBODY)


async def test_when_a_hand_in_the_database_sends_all_of_them_away_the_last_one_stays(
    db: Database,
) -> None:
    people = [await register(f"admin{i}", "admin") for i in range(3)]
    ada = await register("ada", "member")
    for number, user in enumerate(people):
        await let_it_pass(user, 10 - number)
    await let_it_pass(ada)
    assert await active_administrators() == 0
    due = await account_expiry.due()
    assert [user.username for user in due] == ["ada", "admin2", "admin1", "admin0"]
    # Many workers, which get along with their lists at different speeds.
    for user in due:
        await at_once(*(account_expiry.close(user) for _ in range(4)))
    assert await active_administrators() == 1
    assert not (await again(people[2])).disabled
    assert (await again(ada)).disabled
    assert await recorded(people[2]) == [(Verb.LAST_DAY_LIFTED, {"why": "the last administrator"})]
    for user in people[:2]:
        assert [verb for verb, _ in await recorded(user)] == [Verb.USER_DISABLED]


async def test_of_many_who_are_due_at_one_instant_one_administrator_stays(db: Database) -> None:
    people = [await register(f"admin{i}", "admin") for i in range(4)]
    for _ in range(3):
        for user in people:
            await let_it_pass(user)
        due = await account_expiry.due()
        await at_once(*(account_expiry.close(user) for user in due for _ in range(2)))
        assert await active_administrators(lasting=True) == 1
        for user in people:
            await user.enable(by=NOBODY)


@race(10, short=2)
async def test_nothing_that_happens_in_between_undoes_the_rule(db: Database, rounds: range) -> None:
    """A closing and the removal of the last other administrator, at the same instant."""
    admin = await role("admin")
    for number in rounds:
        root = await register(f"root{number}", "admin")
        grace = await let_it_pass(await register(f"grace{number}", "admin"))
        await at_once(
            account_expiry.close(grace),
            root.revoke(admin, by=NOBODY),
            root.disable(by=NOBODY),
            account_expiry.appoint(root, ahead(), by=NOBODY),
            unless=LastAdministrator,
        )
        assert await active_administrators(lasting=True) == 1
        await User.change_all({}, {"$set": {"roles": []}})


@pytest.mark.parametrize("days", [-400_000, -1, 3661])
async def test_a_last_day_is_not_over_yet_and_not_ten_years_away(days: int) -> None:
    assert not account_expiry.is_possible(
        date.min if days < -9999 else clock.now().date() + timedelta(days=days)
    )


async def test_today_can_be_a_last_day_and_the_end_of_time_cannot(db: Database) -> None:
    assert account_expiry.is_possible(clock.now().date())
    assert not account_expiry.is_possible(date.max)
    ada = await register("ada", "member")
    _, token = await sign_in(ada)
    await account_expiry.appoint(ada, clock.now().date(), by=NOBODY)
    assert await why_over(token) is None
