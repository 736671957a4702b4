"""A worker's own process: hypercorn, until the launcher says that it is time to leave."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import uvloop
from hypercorn.asyncio import serve as serve_http
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError

from quartapp import create_app, log, metrics, wire
from quartapp.serving.listeners import BACKLOG
from quartapp.settings import Settings, StartError

# Said on the lifeline.
READY = b"ready\n"
GRACE_SECONDS = 10
ACCEPTED_AT_ONCE = 32


async def _work(listener: int, lifeline: socket.socket) -> None:
    """One worker: serves until SIGTERM, or until the launcher is gone."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    wire.harden()
    log.adopt()
    app = create_app(Settings.load())
    config = _config(listener)
    goodbyes: list[asyncio.Task[None]] = []

    async def leave() -> None:
        """When this returns hypercorn accepts no more, and waits for what is under way."""
        # What was loaded by now stays, so the collector need not look at it again and again. Nor at
        # thousands of open sockets, which takes it half a second, while all else waits: what ends
        # here ends without a circle, so its last round, over everything, may be seldom.
        gc.collect()
        gc.freeze()
        gc.set_threshold(700, 10, 1000)
        # The server set the kernel's queue to what it may take out of it in one turn of the loop.
        with socket.socket(fileno=os.dup(listener)) as same:
            same.listen(BACKLOG)
        with suppress(ConnectionError):
            await loop.sock_sendall(lifeline, READY)
            await first_of(told.wait(), loop.sock_recv(lifeline, 1))
        # The launcher may not be there to end a worker that cannot end itself.
        signal.alarm(GRACE_SECONDS)
        # From here on each answer says that its connection ends with it.
        config.keep_alive_max_requests = 0
        goodbyes.append(asyncio.create_task(app.extensions["quartapp"].drain()))

    await serve_http(app, config, shutdown_trigger=leave)


def _config(listener: int) -> Config:
    config = Config()
    config.bind = [f"fd://{listener}"]
    # asyncio accepts as many connections in one turn of its loop, while all else waits.
    config.backlog = ACCEPTED_AT_ONCE
    config.graceful_timeout = GRACE_SECONDS - 2
    # Frames that still come in when a handler is over would fill a bounded queue, which nobody
    # empties then, and hold the connection for ever. Quart takes in all that comes in any case.
    config.max_app_queue_size = 0
    config.keep_alive_timeout = 15
    config.h11_max_incomplete_size = 16 * 1024
    config.websocket_max_message_size = 64 * 1024
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


def run(listener: int, lifeline: socket.socket) -> int:
    """Serves what comes to the listener, an open file, and returns the exit status."""
    lifeline.setblocking(False)
    metrics.share(os.environ[metrics.FOLDER])
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(listener, lifeline))
    except (StartError, LifespanFailureError) as error:
        if Settings.wants_production():
            name = os.environ.get("QUARTAPP_WORKER")
            log.configure(production=True, worker=name)
            log.log.error("start_failed", reason=str(error))
        else:
            print(f"quartapp: {error}", file=sys.stderr)
        return 1
    return 0


async def first_of(*waits: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Waits until one of them is done, and forgets the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
