"""What may be done only so often. Each limit is a setting; all counts are in the database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv6Address, IPv6Network
from weakref import WeakValueDictionary

import humanize
from beanie import PydanticObjectId
from limits import RateLimitItem
from limits.aio.strategies import FixedWindowRateLimiter

from quartapp import clock
from quartapp.errors import TryLater
from quartapp.log import log
from quartapp.middleware import forwarded
from quartapp.models.limits.counter import Allowances
from quartapp.models.limits.failed_attempts import Guesses
from quartapp.security.passwords import Busy

IN_LINE = 32
LINE_SECONDS = 5.0
LOOK_EVERY = 0.1


class TooMany(TryLater):
    """Too often. Its text says for how long to wait, and until when."""

    status = 429

    def __init__(self, until: datetime) -> None:
        # Our clock may be behind the database's, which is no reason to round up to another second.
        left = until - clock.now() - clock.TOLERANCE
        self.retry_after = max(1, math.ceil(left.total_seconds()))
        wait, unit, time = timedelta(seconds=self.retry_after), "seconds", "%H:%M:%S"
        if self.retry_after > 120:
            # Nobody waits for so long with an eye on the seconds.
            minutes = math.ceil(self.retry_after / 60)
            wait, unit, time = timedelta(minutes=minutes), "minutes", "%H:%M"
        words = humanize.precisedelta(wait, minimum_unit=unit)
        at = (clock.now() + wait).strftime(time)
        super().__init__(f"Too many tries. Try again in {words}, at {at} UTC.")


async def count(what: str, *whom: tuple[str, RateLimitItem]) -> None:
    """Counts one of `what` for each of those whom it is counted for. Raises TooMany."""
    limiter = FixedWindowRateLimiter(Allowances())
    for key, limit in whom:
        if not await limiter.hit(limit, what, key):
            log.warning("excess_rate_limit_exceeded", what=what)
            window = await limiter.get_window_stats(limit, what, key)
            raise TooMany(datetime.fromtimestamp(window.reset_time, clock.now().tzinfo))


async def tally(what: str, whom: str, *, within: timedelta) -> int:
    """How many of `what` that makes since the first of them, for so long. Refuses nothing."""
    return await Allowances().incr(f"{what} {whom}", int(within.total_seconds()))


async def give_back(what: str, key: str, limit: RateLimitItem) -> None:
    """Takes back one that was counted: nothing came of it."""
    await Allowances().incr(limit.key_for(what, key), limit.get_expiry(), -1)


@dataclass(frozen=True, slots=True)
class Key:
    """What failing guesses are counted for. One that is `own` is forgiven by a right guess; of
    one that is shared, such as an office's address, a right guess takes nothing away."""

    text: str
    limit: RateLimitItem
    own: bool = False


@dataclass(slots=True)
class Guess:
    """Set `right` for one that was. All others have failed."""

    right: bool = False


@asynccontextmanager
async def guessing(*keys: Key) -> AsyncIterator[Guess]:
    """Room for one guess at a password, to be judged inside; it is counted on the way out.

    Raises TooMany, before anything was judged. Guesses whose outcome depends on that of others
    under way stand in line for a moment: people who sign in together are not in each other's way.
    Raises Busy when the line is too long. An error inside counts for nothing; but one whose sender
    hangs up has made us hash, and counts as a failure.
    """
    guess, guess_id = Guess(), PydanticObjectId()
    begun: list[Key] = []
    judged = False
    try:
        for key in keys:
            # Noted before: a write that nobody waits for any more may have been made all the same.
            begun.append(key)
            await _begin(key, guess_id)
        try:
            yield guess
        except asyncio.CancelledError:
            guess.right, judged = False, True
            raise
        judged = True
    finally:
        for key in begun:
            if judged and guess.right and key.own:
                await Guesses.forgive(key.text)
            elif judged and not guess.right:
                await Guesses.fail(key.text, guess_id, key.limit)
            else:
                await Guesses.withdraw(key.text, guess_id)


# Those of this worker who wait for the outcome of others' guesses at one key. Only the first of
# them, who has the lock, looks: if all did, a line would cost more than the guesses.
_lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
_in_line = 0


async def _begin(key: Key, guess: PydanticObjectId) -> None:
    global _in_line
    if await _begun(key, guess):
        return
    if _in_line >= IN_LINE:
        raise Busy
    line = _lines.setdefault(key.text, asyncio.Lock())
    _in_line += 1
    try:
        async with asyncio.timeout(LINE_SECONDS), line:
            while not await _begun(key, guess):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY)
    except TimeoutError:
        raise Busy from None
    finally:
        _in_line -= 1


async def _begun(key: Key, guess: PydanticObjectId) -> bool:
    """False when that depends on others under way."""
    begun, until = await Guesses.begin(key.text, guess, key.limit)
    if until and not begun:
        log.warning("excess_rate_limit_exceeded", what=key.text.partition(" ")[0])
        raise TooMany(until)
    return begun


def neighbourhood(address: str | None) -> str:
    """The address as it is counted. Whoever has one of IPv6 has its whole /64."""
    parsed = forwarded.parse(address or "")
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False))
    return str(parsed or address)
