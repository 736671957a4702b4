"""The time as all workers agree on it, a monotonic clock, and how times are written for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

# A smaller difference may be the delay of the answer and not an error of the clock.
TOLERANCE = timedelta(milliseconds=100)

_anchor: tuple[datetime, float] | None = None


def now() -> datetime:
    """Return the database's time as aware UTC, truncated to the milliseconds that MongoDB stores.

    It is the same on all workers, so that a session expires on all of them at once even if the
    clocks of their hosts differ. Until `synchronize` is called it is this machine's time.
    """
    if _anchor is None:
        moment = datetime.now(UTC)
    else:
        heard, at = _anchor
        moment = heard + timedelta(seconds=monotonic() - at)
    return truncate(moment)


def truncate(moment: datetime) -> datetime:
    """Return the time in whole milliseconds, as MongoDB stores it."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def as_utc(moment: datetime) -> datetime:
    """Return the time as aware UTC. A naive time is taken as UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def from_iso(text: str) -> datetime:
    """Return the time in ISO 8601 as aware UTC. A text without an offset is taken as UTC. Raises
    ValueError."""
    try:
        return as_utc(datetime.fromisoformat(text)).astimezone(UTC)
    except OverflowError as error:
        raise ValueError(text) from error


def synchronize(database_time: datetime) -> None:
    """Set the clock to the time that the database has just answered, if `now` differs from it by
    more than TOLERANCE. A naive time is taken as UTC."""
    global _anchor
    database_time = as_utc(database_time)
    if _anchor is None or abs(database_time - now()) > TOLERANCE:
        _anchor = (database_time, monotonic())


def monotonic() -> float:
    """Return seconds that only increase, and on Linux also count while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def format_short(at: datetime) -> str:
    """Return the time for tables and terminals, such as "2026-03-03 14:05 UTC"."""
    return f"{at:%Y-%m-%d %H:%M} UTC"
