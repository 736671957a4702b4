"""The process of one worker: it runs hypercorn until the launcher tells it to exit."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from contextlib import suppress

import uvloop
from hypercorn.asyncio import serve as serve_http
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError

from quartapp import create_app, log, metrics
from quartapp.runtime import runtime_of
from quartapp.serving import patch_hypercorn
from quartapp.serving.lifeline import GRACE_SECONDS, READY, first_of
from quartapp.serving.listeners import BACKLOG
from quartapp.settings import Settings, StartError

ACCEPTED_PER_TURN = 32


def run(listener: int, lifeline: socket.socket) -> int:
    """Serve connections to the listening socket, given as a file descriptor.

    Writes READY to the lifeline once connections are accepted. Stops on SIGTERM or SIGINT, or when
    the other end of the lifeline is closed, and then closes sockets and finishes requests for at
    most GRACE_SECONDS. Keeps the metrics of this process in the shared folder. Returns the exit
    status: 0, or 1 if the application could not start, with the reason on standard error or, in
    production, logged as `start_failed`.
    """
    lifeline.setblocking(False)
    metrics.use_shared_folder(os.environ[metrics.FOLDER])
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(listener, lifeline))
    except (StartError, LifespanFailureError) as error:
        if Settings.wants_production():
            name = os.environ.get("QUARTAPP_WORKER")
            log.configure(production=True, worker=name)
            log.log.error("start_failed", reason=str(error))
        else:
            print(f"quartapp: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(listener: int, lifeline: socket.socket) -> None:
    """Run hypercorn with the application of the environment's settings, until it is told to stop as
    `run` says.

    Installs signal handlers and patches hypercorn first. Writes READY when connections are
    accepted. When it is told to stop, sets an alarm that kills the process after GRACE_SECONDS, has
    each answer close its connection, and closes the sockets of pages; hypercorn then finishes its
    requests. Raises StartError and LifespanFailureError.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    settings = Settings.load()
    patch_hypercorn(settings)
    log.capture_library_logs()
    app = create_app(settings)
    config = _config(listener)
    draining: list[asyncio.Task[None]] = []

    async def serve_until_stopped() -> None:
        """The `shutdown_trigger` of hypercorn, which begins when the application has started.

        When it returns, hypercorn accepts no more and waits for requests to finish.
        """
        _tune_collector(settings)
        # asyncio has set the length of the kernel's queue to `config.backlog`.
        with socket.socket(fileno=os.dup(listener)) as same:
            same.listen(BACKLOG)
        with suppress(ConnectionError):
            await loop.sock_sendall(lifeline, READY)
            await first_of(stop.wait(), loop.sock_recv(lifeline, 1))
        # SIGALRM ends a process that hangs, also when the launcher was killed and cannot.
        signal.alarm(GRACE_SECONDS)
        # From now on each answer closes its connection.
        config.keep_alive_max_requests = 0
        draining.append(asyncio.create_task(runtime_of(app).drain()))

    await serve_http(app, config, shutdown_trigger=serve_until_stopped)


def _tune_collector(settings: Settings) -> None:
    """Have the garbage collector ignore what is loaded by now, and look at all objects seldom.

    Looking at thousands of open sockets takes it half a second, in which the worker does nothing
    else. With the fast path on, sockets leave no reference cycles: see docs/adr/0014.
    """
    gc.collect()
    gc.freeze()
    if settings.fast_path:
        gc.set_threshold(700, 10, 1000)


def _config(listener: int) -> Config:
    """Return hypercorn's configuration: it listens on the given socket, has limits and timeouts,
    sends no Server header, keeps no access log, and writes its errors to Python's logging."""
    config = Config()
    config.bind = [f"fd://{listener}"]
    # asyncio accepts up to this many connections in one turn of its loop.
    config.backlog = ACCEPTED_PER_TURN
    config.graceful_timeout = GRACE_SECONDS - 2
    # Unbounded: frames that arrive after a handler has returned would fill a bounded queue, which
    # nothing empties, and the connection would never be closed. Quart reads all frames in any case.
    config.max_app_queue_size = 0
    config.keep_alive_timeout = 15
    config.h11_max_incomplete_size = 16 * 1024
    config.websocket_max_message_size = 64 * 1024
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config
