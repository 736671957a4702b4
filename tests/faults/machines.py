"""Simulated machines: what a server process does first, so that its workers inherit it."""

from __future__ import annotations

import ctypes
import os
import signal
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import time_machine

from quartapp.ws import dispatcher
from tests.people import BeforeStart


def clock(*, minutes: float) -> BeforeStart:
    """Set the wall clock of the server this much ahead. The monotonic clock is not changed."""
    return partial(_be_ahead, timedelta(minutes=minutes))


def _be_ahead(by: timedelta) -> None:
    time_machine.travel(datetime.now(UTC) + by, tick=True).start()


# A process of the machine that receives one of these signals changes its clock by this much.
STEPS = {signal.SIGUSR1: timedelta(hours=1), signal.SIGUSR2: timedelta(hours=-1)}


def stepping() -> None:
    """Change the wall clock of a process on a signal, as when the clock of a machine is set."""
    for number, by in STEPS.items():
        signal.signal(number, lambda *_, by=by: _be_ahead(by))


def close_sockets_after(seconds: float) -> BeforeStart:
    """Shorten the time without a database after which the server closes its sockets."""
    return partial(_close_sockets_after, seconds)


def _close_sockets_after(seconds: float) -> None:
    dispatcher.DATABASE_AWAY_SECONDS = seconds


def disk(folder: Path, *, megabytes: int) -> BeforeStart:
    """Mount a small file system on the folder, visible only to the server.

    Other processes reach it under `/proc/<pid>/root`.
    """
    return partial(_have_disk, folder, megabytes)


NEW_USERS, NEW_MOUNTS = 0x10000000, 0x00020000
PRIVATE = 0x00040000 | 0x00004000


def _have_disk(folder: Path, megabytes: int) -> None:
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()

    def call(name: str, *values: int | bytes | None) -> None:
        if getattr(libc, name)(*values):
            raise OSError(ctypes.get_errno(), f"{name} was refused")

    # An unprivileged process may mount file systems in a user namespace of its own.
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
