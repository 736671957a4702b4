"""How often something may be tried: counted exactly, for all workers, and forgotten in time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from limits import RateLimitItem, parse

from quartapp import clock
from quartapp.auth import rate_limits
from quartapp.auth.rate_limits import Key, RateLimitExceeded, attempt, count
from quartapp.db.mongo import Database
from quartapp.models.limits.counter import Allowance
from quartapp.models.limits.failed_attempts import Guesses
from quartapp.security.passwords import Busy

FIVE = parse("5 per 5 minutes")


@pytest.fixture(autouse=True)
def bound(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of these write to the database. Its machine may be busy with other things."""
    monkeypatch.setattr(rate_limits, "WAIT_SECONDS", 30)


async def guess(*keys: Key, right: bool = False) -> None:
    async with attempt(*keys) as mine:
        mine.succeeded = right


async def outcome(*keys: Key, right: bool = False) -> str | int:
    """`judged`, or after how many seconds to come back."""
    try:
        await guess(*keys, right=right)
    except RateLimitExceeded as refused:
        return refused.retry_after
    return "judged"


async def let_pass(seconds: float) -> None:
    """Moves everything that is remembered so far into the past."""
    rows = Guesses.get_motor_collection()
    back = -int(seconds * 1000)
    fields = {name: {"$add": [f"${name}", back]} for name in ("until", "forget_at")}
    await rows.update_many({}, [{"$set": fields}])
    await Allowance.get_motor_collection().update_many(
        {}, [{"$set": {"until": {"$add": ["$until", back]}}}]
    )


async def only() -> Guesses:
    (found,) = await Guesses.find({}).to_list()
    return found


async def remember_still() -> None:
    """As if less time had passed since the last failure than it takes to forget it."""
    soon = clock.now() + timedelta(minutes=1)
    await Guesses.get_motor_collection().update_many({}, {"$set": {"forget_at": soon}})


async def test_so_many_failures_are_free_and_each_further_wait_is_twice_as_long() -> None:
    key, waits = Key("ada", FIVE), []
    for _ in range(4):
        await guess(key)
        assert (await only()).until is None
    for _ in range(12):
        began = clock.now()
        await guess(key)
        until = (await only()).until
        assert until is not None
        waits.append((until - clock.now(), until - began))
        await let_pass(301)
        await remember_still()
    planned = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    for seconds, (least, most) in zip(planned, waits, strict=True):
        expected_wait = timedelta(seconds=seconds)
        assert least - clock.TOLERANCE <= expected_wait <= most + clock.TOLERANCE


async def test_whoever_has_to_wait_is_not_judged_and_it_costs_nothing_more() -> None:
    key = Key("ada", FIVE)
    for _ in range(10):
        await guess(key)
        await let_pass(33)
        await remember_still()
    await guess(key)
    before = await only()
    assert before.until is not None
    for _ in range(3):
        wait = await outcome(key)
        assert isinstance(wait, int)
        assert 20 < wait <= 64
    assert (await only()).until == before.until


async def test_failures_are_forgotten_when_the_period_has_passed_after_the_wait() -> None:
    key = Key("ada", FIVE)
    for _ in range(5):
        await guess(key)
    await let_pass(1 + 290)
    assert await outcome(key) == "judged"
    assert await outcome(key) == 2
    await let_pass(2 + 300)
    assert [await outcome(key) for _ in range(5)] == ["judged"] * 5


async def test_a_right_guess_forgives_what_is_ones_own_and_costs_nothing_of_what_is_shared() -> (
    None
):
    own, shared = Key("ada at home", FIVE, own=True), Key("home", FIVE)
    for _ in range(4):
        await guess(own, shared)
    for _ in range(20):
        await guess(own, shared, right=True)
    assert await outcome(own, shared) == "judged"
    assert await outcome(own) == "judged"
    assert await outcome(shared) == 1


async def test_of_forty_failures_at_once_exactly_five_are_judged() -> None:
    key, judged = Key("ada", FIVE), 0

    async def attempt_once() -> str:
        nonlocal judged
        try:
            async with attempt(key):
                judged += 1
                await asyncio.sleep(0.3)
        except RateLimitExceeded:
            return "too many"
        except Busy:
            return "busy"
        return "judged"

    found = await asyncio.gather(*(attempt_once() for _ in range(40)))
    assert judged == 5
    assert found.count("too many") + found.count("busy") == 35
    assert found.count("busy") <= 40 - 5 - rate_limits.MAX_WAITING


async def test_of_right_guesses_at_once_none_is_refused() -> None:
    key, judging, most = Key("office", FIVE), 0, 0

    async def attempt_once() -> None:
        nonlocal judging, most
        async with attempt(key) as mine:
            judging += 1
            most = max(most, judging)
            await asyncio.sleep(0.05)
            judging -= 1
            mine.succeeded = True

    await asyncio.gather(*(attempt_once() for _ in range(25)))
    assert most <= 5


async def test_the_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(rate_limits, "MAX_WAITING", 3)
    key = Key("ada", parse("1 per minute"))
    async with attempt(key):
        found = await asyncio.gather(*(guess(key) for _ in range(10)), return_exceptions=True)
    assert [type(each) for each in found] == [Busy] * 10


async def test_a_line_costs_no_more_looks_than_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "WAIT_SECONDS", 0.5)
    key, looks, begin = Key("ada", parse("1 per minute")), 0, Guesses.begin

    async def look(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return await begin(*args)

    async with attempt(key):
        monkeypatch.setattr(Guesses, "begin", look)
        await asyncio.gather(*(guess(key) for _ in range(20)), return_exceptions=True)
    # Each when it came, the first five times more, and each when it has become the first.
    assert looks < 20 + 5 + 20


async def test_what_was_never_judged_counts_for_nothing() -> None:
    key = Key("ada", parse("1 per minute"))
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with attempt(key):
                raise RuntimeError
    # Refused for one key, a guess is not held against the other.
    full = Key("full", parse("1 per minute"))
    await guess(full)
    for _ in range(3):
        assert await outcome(key, full) == 1
    assert await outcome(key) == "judged"


async def test_a_guess_whose_worker_died_is_given_up_after_a_while() -> None:
    key = Key("ada", parse("1 per minute"))
    rows = Guesses.get_motor_collection()
    judging = asyncio.Event()
    ghost = asyncio.create_task(_forever(key, judging))
    await judging.wait()
    old = clock.now() - timedelta(seconds=30)
    await rows.update_many({}, {"$set": {"under_way.0.at": old}})
    assert await outcome(key) == "judged"
    ghost.cancel()


async def test_who_hangs_up_while_a_guess_is_judged_has_failed() -> None:
    key = Key("ada", FIVE)
    for _ in range(5):
        judging = asyncio.Event()
        task = asyncio.create_task(_forever(key, judging))
        await judging.wait()
        task.cancel()
        await asyncio.wait([task])
    assert (await only()).failed == 5


async def _forever(key: Key, judging: asyncio.Event) -> None:
    async with attempt(key):
        judging.set()
        await asyncio.Event().wait()


async def hits(limit: RateLimitItem, key: str = "home") -> bool:
    try:
        await count("registration", (key, limit))
    except RateLimitExceeded:
        return False
    return True


async def test_counts_are_exact_over_many_at_once_and_begin_anew_with_the_window() -> None:
    found = await asyncio.gather(*(hits(FIVE) for _ in range(40)))
    assert found.count(True) == 5
    assert await hits(FIVE, "elsewhere")
    with pytest.raises(RateLimitExceeded) as refused:
        await count("registration", ("home", FIVE))
    assert 290 < refused.value.retry_after <= 300
    await let_pass(300)
    assert await hits(FIVE)


async def test_keys_are_kept_as_digests_alone() -> None:
    await guess(Key("ada@example.org from 192.0.2.7", FIVE))
    await count("registration", ("192.0.2.7", FIVE))
    rows = [*await Guesses.find({}).to_list(), *await Allowance.find({}).to_list()]
    assert len(rows) == 2
    assert "192.0.2" not in repr(rows)
    assert "ada" not in repr(rows)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("<local>", "<local>"),
        (None, "None"),
    ],
)
def test_an_address_of_ipv6_is_counted_by_its_network(address: str | None, counted: str) -> None:
    assert rate_limits.network_of(address) == counted


def test_it_says_until_when_in_words() -> None:
    refused = RateLimitExceeded(clock.now() + timedelta(seconds=89.5))
    assert refused.retry_after == 90
    assert "Try again in 1 minute and 30 seconds, at " in str(refused)
    assert str(refused).endswith(" UTC.")
    later = RateLimitExceeded(clock.now() + timedelta(seconds=299.5))
    assert later.retry_after == 300
    assert "Try again in 5 minutes, at " in str(later)
