"""The two clocks: one that tells the time, and one that only runs. And how the time is told."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

# Of less than this much one cannot tell a wrong clock from a slow answer.
TOLERANCE = timedelta(milliseconds=100)

_anchor: tuple[datetime, float] | None = None


def now() -> datetime:
    """The database's time as aware UTC, cut to the milliseconds that MongoDB keeps.

    All workers go by it, so that a session expires at one moment for all of them, whatever the
    clocks of their hosts say. Before the database was heard of it is this machine's own.
    """
    if _anchor is None:
        moment = datetime.now(UTC)
    else:
        heard, at = _anchor
        moment = heard + timedelta(seconds=monotonic() - at)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def agree(moment: datetime) -> None:
    """Takes over what the database said just now, if the difference is worth it."""
    global _anchor
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if _anchor is None or abs(moment - now()) > TOLERANCE:
        _anchor = (moment, monotonic())


def monotonic() -> float:
    """Seconds that also pass while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def in_full(at: datetime) -> str:
    """The moment as a person writes it."""
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def to_the_minute(at: datetime) -> str:
    """The moment as it is written where lines are compared: in records and on terminals."""
    return f"{at:%Y-%m-%d %H:%M} UTC"
