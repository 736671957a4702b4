"""Tasks that the launcher has done by a process of the fork server.

They need the models. The launcher does not import these: the fork server does, while the launcher
starts the database.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from quartapp import log, startup
from quartapp.serving.lifeline import FORGET_WORKER, PREPARE
from quartapp.settings import Settings


async def _prepare(settings: Settings) -> dict[str, Any]:
    return dataclasses.asdict(await startup.prepare(settings))


async def _forget_worker(settings: Settings) -> dict[str, Any]:
    await startup.forget_worker(settings, os.environ["QUARTAPP_WORKER_ID"])
    return {}


_TASKS: dict[str, Callable[[Settings], Awaitable[dict[str, Any]]]] = {
    PREPARE: _prepare,
    FORGET_WORKER: _forget_worker,
}


def run(task: str, lifeline: socket.socket) -> int:
    """Run the task with the settings of the environment, and write its outcome to the lifeline.

    The outcome is a JSON object on one line: the result, or the `reason` of an error that is
    expected. Returns the exit status. Raises other errors, and then writes nothing.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # They are for the launcher, which kills this process if it is told to stop.
        signal.signal(number, signal.SIG_IGN)
    try:
        settings = Settings.load()
        log.configure(production=settings.production)
        log.capture_library_logs()
        outcome = asyncio.run(_run(_TASKS[task], settings))
    except Exception as error:
        reason = startup.expected_reason(error)
        if reason is None:
            raise
        outcome = {"reason": reason}
    # The launcher may have gone.
    with suppress(OSError):
        lifeline.sendall(json.dumps(outcome).encode() + b"\n")
    return int("reason" in outcome)


async def _run(
    task: Callable[[Settings], Awaitable[dict[str, Any]]], settings: Settings
) -> dict[str, Any]:
    return await task(settings)
