"""Rate limits. Each limit is a setting; all counts are in the database, shared by the workers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv6Address, IPv6Network
from weakref import WeakValueDictionary

from beanie import PydanticObjectId
from limits import RateLimitItem
from limits.aio.strategies import FixedWindowRateLimiter

from quartapp import clock
from quartapp.errors import RetryLater
from quartapp.i18n import duration
from quartapp.i18n import lazy_gettext as _
from quartapp.log import log
from quartapp.middleware import forwarded
from quartapp.models.limits.counter import CounterStorage
from quartapp.models.limits.failed_attempts import FailedAttempts
from quartapp.security.passwords import Busy

# Attempts of one worker that may wait for the outcome of others, and for how long.
MAX_WAITING = 32
WAIT_SECONDS = 5.0
POLL_SECONDS = 0.1


class RateLimitExceeded(RetryLater):
    """A limit is used up. Answered with 429.

    `retry_after` is the number of seconds until the moment `until`, rounded up, at least 1. The
    text says how long to wait and until when; above two minutes, rounded up to minutes.
    """

    status = 429

    def __init__(self, until: datetime) -> None:
        # The clocks of this host and of the database differ by up to TOLERANCE. Without it, the
        # time left could be rounded up to one more second.
        left = until - clock.now() - clock.TOLERANCE
        self.retry_after = max(1, math.ceil(left.total_seconds()))
        wait, time = timedelta(seconds=self.retry_after), "%H:%M:%S"
        if self.retry_after > 120:
            # For longer times, minutes are precise enough.
            minutes = math.ceil(self.retry_after / 60)
            wait, time = timedelta(minutes=minutes), "%H:%M"
        super().__init__(
            _(
                "Too many attempts. Try again in %(wait)s, at %(time)s UTC.",
                wait=duration(wait),
                time=(clock.now() + wait).strftime(time),
            )
        )


async def count(action: str, *keys: tuple[str, RateLimitItem]) -> None:
    """Count one action for each key, in turn, in fixed windows.

    At the first key whose limit is used up, logs the warning `excess_rate_limit_exceeded` and
    raises RateLimitExceeded until its window ends; the keys before it stay counted, and those after
    it are not counted.
    """
    limiter = FixedWindowRateLimiter(CounterStorage())
    for key, limit in keys:
        if not await limiter.hit(limit, action, key):
            log.warning("excess_rate_limit_exceeded", what=action)
            window = await limiter.get_window_stats(limit, action, key)
            raise RateLimitExceeded(datetime.fromtimestamp(window.reset_time, clock.now().tzinfo))


async def increment(action: str, key: str, *, within: timedelta) -> int:
    """Count one action without a limit. Return the count, which restarts after the time `within`,
    counted from the first action."""
    return await CounterStorage().incr(f"{action} {key}", int(within.total_seconds()))


async def uncount(action: str, key: str, limit: RateLimitItem) -> None:
    """Reduce the count that `count` has increased by one, because the action did not take place.
    If the window has ended since, the next one begins with -1."""
    await CounterStorage().incr(limit.key_for(action, key), limit.get_expiry(), -1)


@dataclass(frozen=True, slots=True)
class Key:
    """The name under which failed attempts are counted, and their limit.

    A successful attempt resets the count of a key that is `own`, such as an account's. It does not
    reset that of a key which many users share, such as the address of an office.
    """

    text: str
    limit: RateLimitItem
    own: bool = False


@dataclass(slots=True)
class Attempt:
    """An attempt to authenticate. It has failed unless `succeeded` is set."""

    succeeded: bool = False


@asynccontextmanager
async def attempt(*keys: Key) -> AsyncIterator[Attempt]:
    """Reserve an attempt under each key in the database, and record its outcome at the end.

    Check the password in the body, and set `succeeded`. A failure counts against every key. A
    success deletes the failures of the keys that are `own`, and releases the reservation of the
    others. An exception in the body counts as neither and releases all reservations, with one
    exception: a client that disconnects (CancelledError) has already made the worker hash, so its
    attempt counts as failed.

    Concurrent attempts cannot exceed the limit: where the limit depends on the outcome of others
    that are under way, this waits up to WAIT_SECONDS for each key. Before the body runs, raises
    RateLimitExceeded (429), logged as `excess_rate_limit_exceeded`, and Busy (503) when MAX_WAITING
    attempts of this worker wait already or the wait takes too long. What was reserved until then is
    released.
    """
    outcome, attempt_id = Attempt(), PydanticObjectId()
    begun: list[Key] = []
    checked = False
    try:
        for key in keys:
            # Appended first, because a write that is cancelled may have taken place.
            begun.append(key)
            await _begin(key, attempt_id)
        try:
            yield outcome
        except asyncio.CancelledError:
            outcome.succeeded, checked = False, True
            raise
        checked = True
    finally:
        for key in begun:
            if checked and outcome.succeeded and key.own:
                await FailedAttempts.forgive(key.text)
            elif checked and not outcome.succeeded:
                await FailedAttempts.fail(key.text, attempt_id, key.limit)
            else:
                await FailedAttempts.withdraw(key.text, attempt_id)


# One lock for each key with waiting attempts of this worker. Only the attempt that holds the lock
# polls the database: if all did, waiting would cost more than the attempts.
_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
_waiting = 0


async def _begin(key: Key, attempt_id: PydanticObjectId) -> None:
    """Reserve the attempt under the key. If that depends on the outcome of others, ask the database
    every POLL_SECONDS, for up to WAIT_SECONDS; of this worker's attempts for one key, only one asks
    at a time.

    Raises RateLimitExceeded, which `_has_begun` logs. Raises Busy, which is not logged, at once if
    MAX_WAITING attempts of this worker wait already for any keys, or when WAIT_SECONDS are over.
    When it raises Busy or is cancelled, a query that was under way may still have reserved the
    attempt, so the caller releases it.
    """
    global _waiting
    if await _has_begun(key, attempt_id):
        return
    if _waiting >= MAX_WAITING:
        raise Busy
    lock = _locks.setdefault(key.text, asyncio.Lock())
    _waiting += 1
    try:
        async with asyncio.timeout(WAIT_SECONDS), lock:
            while not await _has_begun(key, attempt_id):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise Busy from None
    finally:
        _waiting -= 1


async def _has_begun(key: Key, attempt_id: PydanticObjectId) -> bool:
    """Try to reserve the attempt; return whether it was reserved. False means that it depends on
    the outcome of others, so try again later.

    Logs the warning `excess_rate_limit_exceeded` and raises RateLimitExceeded if the key is blocked
    after too many failures.
    """
    begun, until = await FailedAttempts.begin(key.text, attempt_id, key.limit)
    if until and not begun:
        log.warning("excess_rate_limit_exceeded", what=key.text.partition(" ")[0])
        raise RateLimitExceeded(until)
    return begun


def network_of(address: str | None) -> str:
    """Return the key under which an address is counted: the /64 network of an IPv6 address,
    because one client can use all of it; an IPv4 address without port; any other text as it is;
    "None" for None."""
    parsed = forwarded.parse(address or "")
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False))
    return str(parsed or address)
