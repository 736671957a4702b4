"""What makes a machine of its own of a server: done first in its process, and so in its workers."""

from __future__ import annotations

import ctypes
import os
import signal
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import time_machine

from quartapp.ws import dispatcher
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
    dispatcher.DISTRUST_SECONDS = seconds


def disk(folder: Path, *, megabytes: int) -> First:
    """What is in the folder is on a disk of its own of that size, which nobody else sees: others
    find it under `/proc/<pid>/root`."""
    return partial(_have_disk, folder, megabytes)


NEW_USERS, NEW_MOUNTS = 0x10000000, 0x00020000
PRIVATE = 0x00040000 | 0x00004000


def _have_disk(folder: Path, megabytes: int) -> None:
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()

    def call(name: str, *values: int | bytes | None) -> None:
        if getattr(libc, name)(*values):
            raise OSError(ctypes.get_errno(), f"{name} was refused")

    # As the only one of its kind, whoever may not mount anything may.
    call("unshare", NEW_USERS | NEW_MOUNTS)
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path("/proc/self", name).write_text(line)
    call("mount", None, b"/", None, PRIVATE, None)
    size = f"size={megabytes}m,mode=0700".encode()
    call("mount", b"disk", bytes(folder), b"tmpfs", 0, size)
