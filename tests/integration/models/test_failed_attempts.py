"""Limits on attempts: counted exactly over all workers, and expired in time."""

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
from quartapp.models.limits.counter import Counter
from quartapp.models.limits.failed_attempts import FailedAttempts
from quartapp.security.passwords import Busy

FIVE = parse("5 per 5 minutes")


@pytest.fixture(autouse=True)
def bound(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow 30 seconds for each attempt, because the machine may be busy."""
    monkeypatch.setattr(rate_limits, "WAIT_SECONDS", 30)


async def guess(*keys: Key, right: bool = False) -> None:
    async with attempt(*keys) as mine:
        mine.succeeded = right


async def outcome(*keys: Key, right: bool = False) -> str | int:
    """Return `evaluated`, or the seconds after which to try again."""
    try:
        await guess(*keys, right=right)
    except RateLimitExceeded as refused:
        return refused.retry_after
    return "evaluated"


async def let_pass(seconds: float) -> None:
    """Move all stored times into the past by this many seconds."""
    rows = FailedAttempts.get_motor_collection()
    back = -int(seconds * 1000)
    fields = {name: {"$add": [f"${name}", back]} for name in ("until", "forget_at")}
    await rows.update_many({}, [{"$set": fields}])
    await Counter.get_motor_collection().update_many(
        {}, [{"$set": {"until": {"$add": ["$until", back]}}}]
    )


async def only_row() -> FailedAttempts:
    (found,) = await FailedAttempts.find({}).to_list()
    return found


async def postpone_expiry() -> None:
    """Postpone the expiry of all stored failures."""
    soon = clock.now() + timedelta(minutes=1)
    await FailedAttempts.get_motor_collection().update_many({}, {"$set": {"forget_at": soon}})


async def test_failures_past_the_limit_double_the_wait() -> None:
    key, waits = Key("ada", FIVE), []
    for _ in range(4):
        await guess(key)
        assert (await only_row()).until is None
    for _ in range(12):
        began = clock.now()
        await guess(key)
        until = (await only_row()).until
        assert until is not None
        waits.append((until - clock.now(), until - began))
        await let_pass(301)
        await postpone_expiry()
    planned = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    for seconds, (least, most) in zip(planned, waits, strict=True):
        expected_wait = timedelta(seconds=seconds)
        assert least - clock.TOLERANCE <= expected_wait <= most + clock.TOLERANCE


async def test_an_attempt_during_the_wait_is_refused_and_not_counted() -> None:
    key = Key("ada", FIVE)
    for _ in range(10):
        await guess(key)
        await let_pass(33)
        await postpone_expiry()
    await guess(key)
    before = await only_row()
    assert before.until is not None
    for _ in range(3):
        wait = await outcome(key)
        assert isinstance(wait, int)
        assert 20 < wait <= 64
    assert (await only_row()).until == before.until


async def test_failures_expire_one_period_after_the_wait() -> None:
    key = Key("ada", FIVE)
    for _ in range(5):
        await guess(key)
    await let_pass(1 + 290)
    assert await outcome(key) == "evaluated"
    assert await outcome(key) == 2
    await let_pass(2 + 300)
    assert [await outcome(key) for _ in range(5)] == ["evaluated"] * 5


async def test_a_success_clears_failures_of_its_own_key_and_not_of_shared_keys() -> None:
    own, shared = Key("ada at home", FIVE, own=True), Key("home", FIVE)
    for _ in range(4):
        await guess(own, shared)
    for _ in range(20):
        await guess(own, shared, right=True)
    assert await outcome(own, shared) == "evaluated"
    assert await outcome(own) == "evaluated"
    assert await outcome(shared) == 1


async def test_exactly_five_of_forty_concurrent_failures_are_evaluated() -> None:
    key, evaluated = Key("ada", FIVE), 0

    async def attempt_once() -> str:
        nonlocal evaluated
        try:
            async with attempt(key):
                evaluated += 1
                await asyncio.sleep(0.3)
        except RateLimitExceeded:
            return "too many"
        except Busy:
            return "busy"
        return "evaluated"

    found = await asyncio.gather(*(attempt_once() for _ in range(40)))
    assert evaluated == 5
    assert found.count("too many") + found.count("busy") == 35
    assert found.count("busy") <= 40 - 5 - rate_limits.MAX_WAITING


async def test_concurrent_successes_are_never_refused() -> None:
    key, evaluating, most = Key("office", FIVE), 0, 0

    async def attempt_once() -> None:
        nonlocal evaluating, most
        async with attempt(key) as mine:
            evaluating += 1
            most = max(most, evaluating)
            await asyncio.sleep(0.05)
            evaluating -= 1
            mine.succeeded = True

    await asyncio.gather(*(attempt_once() for _ in range(25)))
    assert most <= 5


async def test_attempts_past_the_longest_queue_are_refused_as_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limits, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(rate_limits, "MAX_WAITING", 3)
    key = Key("ada", parse("1 per minute"))
    async with attempt(key):
        found = await asyncio.gather(*(guess(key) for _ in range(10)), return_exceptions=True)
    assert [type(each) for each in found] == [Busy] * 10


async def test_only_the_first_waiting_attempt_polls_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limits, "WAIT_SECONDS", 0.5)
    key, polls, begin = Key("ada", parse("1 per minute")), 0, FailedAttempts.begin

    async def poll(*args: Any) -> Any:
        nonlocal polls
        polls += 1
        return await begin(*args)

    async with attempt(key):
        monkeypatch.setattr(FailedAttempts, "begin", poll)
        await asyncio.gather(*(guess(key) for _ in range(20)), return_exceptions=True)
    # Each attempt asks when it arrives and when it becomes the first; the first asks five times
    # more.
    assert polls < 20 + 5 + 20


async def test_an_attempt_that_was_not_evaluated_is_not_counted() -> None:
    key = Key("ada", parse("1 per minute"))
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with attempt(key):
                raise RuntimeError
    # An attempt that is refused for one key is not counted for the other.
    full = Key("full", parse("1 per minute"))
    await guess(full)
    for _ in range(3):
        assert await outcome(key, full) == 1
    assert await outcome(key) == "evaluated"


async def test_an_attempt_of_a_dead_worker_times_out() -> None:
    key = Key("ada", parse("1 per minute"))
    rows = FailedAttempts.get_motor_collection()
    evaluating = asyncio.Event()
    abandoned = asyncio.create_task(_attempt_attempt_attempt_forever(key, evaluating))
    await evaluating.wait()
    old = clock.now() - timedelta(seconds=30)
    await rows.update_many({}, {"$set": {"under_way.0.at": old}})
    assert await outcome(key) == "evaluated"
    abandoned.cancel()


async def test_a_cancelled_attempt_counts_as_failed() -> None:
    key = Key("ada", FIVE)
    for _ in range(5):
        evaluating = asyncio.Event()
        task = asyncio.create_task(_attempt_attempt_attempt_forever(key, evaluating))
        await evaluating.wait()
        task.cancel()
        await asyncio.wait([task])
    assert (await only_row()).failed == 5


async def _attempt_attempt_attempt_forever(key: Key, evaluating: asyncio.Event) -> None:
    async with attempt(key):
        evaluating.set()
        await asyncio.Event().wait()


async def hits(limit: RateLimitItem, key: str = "home") -> bool:
    try:
        await count("registration", (key, limit))
    except RateLimitExceeded:
        return False
    return True


async def test_concurrent_counts_are_exact_and_restart_with_each_window() -> None:
    found = await asyncio.gather(*(hits(FIVE) for _ in range(40)))
    assert found.count(True) == 5
    assert await hits(FIVE, "elsewhere")
    with pytest.raises(RateLimitExceeded) as refused:
        await count("registration", ("home", FIVE))
    assert 290 < refused.value.retry_after <= 300
    await let_pass(300)
    assert await hits(FIVE)


async def test_rate_limit_keys_are_stored_as_digests() -> None:
    await guess(Key("ada@example.org from 192.0.2.7", FIVE))
    await count("registration", ("192.0.2.7", FIVE))
    rows = [*await FailedAttempts.find({}).to_list(), *await Counter.find({}).to_list()]
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
def test_ipv6_addresses_are_counted_by_network(address: str | None, counted: str) -> None:
    assert rate_limits.network_of(address) == counted


def test_the_error_says_when_to_try_again() -> None:
    refused = RateLimitExceeded(clock.now() + timedelta(seconds=89.5))
    assert refused.retry_after == 90
    assert "Try again in 1 minute and 30 seconds, at " in str(refused)
    assert str(refused).endswith(" UTC.")
    later = RateLimitExceeded(clock.now() + timedelta(seconds=299.5))
    assert later.retry_after == 300
    assert "Try again in 5 minutes, at " in str(later)
