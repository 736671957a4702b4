"""What makes a machine of its own of a server: done first in its process, and so in its workers."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from functools import partial

import time_machine

from quartapp.ws import feed
from tests.people import First


def clock(*, minutes: float) -> First:
    """Its wall clock is ahead by so much, or behind. Durations are measured by another clock."""
    return partial(_be_ahead, timedelta(minutes=minutes))


def _be_ahead(by: timedelta) -> None:
    time_machine.travel(datetime.now(UTC) + by, tick=True).start()


# Each time that a process of the machine is sent one of these its clock steps by so much.
STEPS = {signal.SIGUSR1: timedelta(hours=1), signal.SIGUSR2: timedelta(hours=-1)}


def stepping() -> None:
    """Its wall clock steps while it serves, as one does that somebody sets."""
    for number, by in STEPS.items():
        signal.signal(number, lambda *_, by=by: _be_ahead(by))


def distrust(seconds: float) -> First:
    """It does without a database for so long, not for half a minute."""
    return partial(_distrust, seconds)


def _distrust(seconds: float) -> None:
    feed.DISTRUST_SECONDS = seconds
