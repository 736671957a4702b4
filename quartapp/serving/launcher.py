"""The launcher: starts one process per worker, and replaces those that exit.

hypercorn's own `workers=N` stops every worker when one of them exits, and drops WebSockets without
a close frame. Here the launcher keeps the listening sockets open, so that no connection is refused
while a worker is replaced. See docs/adr/0004.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from quartapp import metrics, servers
from quartapp.db import embedded
from quartapp.log import capture_library_logs, configure, log, print_line
from quartapp.serving.lifeline import FORGET_WORKER, PREPARE
from quartapp.serving.listeners import listening
from quartapp.serving.workers import ForkServerClient, WorkerSlot
from quartapp.settings import Settings, StartError


def serve(settings: Settings, *, host: str, port: int, workers: int) -> int:
    """Serve until SIGTERM or SIGINT, and return exit status 0.

    Raises this process's limit of open files, forks the fork server and configures logging. Then
    runs an event loop, which starts the database and the workers (`_launch`). Call it before an
    event loop or a thread is started, because it forks.

    SIGINT tells the workers to exit. SIGTERM does so too, but with `drain_seconds`, `/readyz` first
    answers 503 for that time; another SIGTERM or SIGINT ends it early. A signal that comes while
    the workers exit kills them. SIGHUP replaces the workers by new ones; if stdin is a terminal, it
    acts like SIGINT instead.

    Raises StartError if the data folder is in use or cannot be written to, if it cannot listen on
    the host and port, or if the database or the first process of a worker cannot be started.
    """
    _allow_many_files()
    fork_server = ForkServerClient.fork_here()
    configure(production=settings.production)
    capture_library_logs()
    return asyncio.run(_until_signalled(settings, host, port, workers, fork_server))


def _allow_many_files() -> None:
    """Raise the limit of open files to the hard limit: each connection is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _until_signalled(
    settings: Settings, host: str, port: int, workers: int, fork_server: ForkServerClient
) -> int:
    """Run `_launch` until a signal cancels it, wait for its clean-up, and return exit status 0.

    Installs the handlers of SIGTERM, SIGINT and SIGHUP on the event loop, and leaves them there. A
    signal that is ignored already stays ignored, as SIGHUP under nohup, which logs
    `sighup_ignored`.

    The first signal to stop cancels `_launch`. But SIGTERM creates the file `requests.drain`, if
    that is set, and `_launch` is cancelled `drain_seconds` later or by the next signal. A signal
    during the clean-up sets `requests.kill`. SIGHUP sets `requests.renewal`; if stdin is a
    terminal, it stops like SIGINT.

    In production, logs `server_stopping` for each signal before the clean-up, and `server_stopped`
    at the end. Raises what `_launch` raises.
    """
    requests = SignalRequests()
    launcher = asyncio.create_task(_launch(settings, host, port, workers, fork_server, requests))
    loop = asyncio.get_running_loop()

    def end_drain() -> None:
        # If a second signal has ended the drain, another cancellation would end the clean-up.
        if not launcher.cancelling():
            launcher.cancel()

    def stop(number: signal.Signals) -> None:
        if launcher.cancelling():
            requests.kill.set()
            return
        if settings.production:
            log.info("server_stopping", signal=number.name)
        if number is signal.SIGTERM and requests.drain is not None and not requests.drain.exists():
            requests.drain.touch()
            loop.call_later(settings.drain_seconds, end_drain)
        else:
            launcher.cancel()

    # A terminal that is closed sends SIGHUP too, and then the server should end.
    hang_up = partial(stop, signal.SIGHUP) if os.isatty(0) else requests.renewal.set
    handlers = {each: partial(stop, each) for each in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in {**handlers, signal.SIGHUP: hang_up}.items():
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, handler)
        elif number is signal.SIGHUP:
            log.warning("sighup_ignored", detail="started by nohup: SIGHUP renews no workers")
    with suppress(asyncio.CancelledError):
        await launcher
    if settings.production:
        log.info("server_stopped")
    return 0


@dataclass
class SignalRequests:
    """What signal handlers ask of the launcher.

    `kill` is set to kill workers that are exiting, `renewal` to replace all workers. While the file
    `drain` exists, `/readyz` answers 503; it is None until the server has started, and always if
    `drain_seconds` is 0.
    """

    kill: asyncio.Event = field(default_factory=asyncio.Event)
    renewal: asyncio.Event = field(default_factory=asyncio.Event)
    drain: Path | None = None


async def _launch(
    settings: Settings,
    host: str,
    port: int,
    count: int,
    fork_server: ForkServerClient,
    requests: SignalRequests,
) -> None:
    """Start the database and the workers, print the address, and keep the workers running.

    Creates and locks the data folder, listens, prepares the database, and starts `count` workers at
    once. When all serve, prints the address. From then on, replaces workers that exit, deletes the
    heartbeats of those that died, and renews all workers whenever `requests.renewal` is set.

    Runs until cancelled, then ends everything in the reverse order. Raises StartError if something
    cannot be started.
    """
    settings.make_data_folder()
    with (
        _exclusive_data_folder(settings),
        listening(settings, host, port, count) as listeners,
        TemporaryDirectory(prefix="quartapp-") as folder,
    ):
        async with AsyncExitStack() as stack:
            stack.push_async_callback(fork_server.close)
            uri = await stack.enter_async_context(_database(settings))
            allow_old = settings.allow_old_mongodb or settings.mongodb_uri is None
            dead: asyncio.Queue[str] = asyncio.Queue()
            origin = _origin(listeners)
            served = {} if settings.production or settings.knows_origin else {"BASE_URL": origin}
            environment = {
                "QUARTAPP_DATA": str(settings.data),
                "MONGODB_URI": uri,
                "ALLOW_OLD_MONGODB": str(allow_old),
                metrics.FOLDER: folder,
                "QUARTAPP_NEIGHBOURS": folder,
                **served,
            }
            prepared = await fork_server.run_task(PREPARE, environment)
            workers = [
                WorkerSlot(
                    index, fork_server, listener, environment, requests.kill, dead.put_nowait
                )
                for index, listener in enumerate(listeners)
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_remove_dead_workers(workers, environment, dead))
                    for worker in workers:
                        group.create_task(worker.keep_alive())
                    for worker in workers:
                        await worker.started.wait()
                    database = prepared["database"]
                    if not settings.mongodb_uri:
                        database = f"embedded {database} in {settings.data}"
                    _announce(settings, origin, len(listeners), database, prepared["setup_path"])
                    if settings.drain_seconds:
                        requests.drain = Path(folder) / servers.DRAINING
                    await _renew_on_request(workers, requests.renewal, stack)
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                while not dead.empty():
                    await _remove(workers, environment, dead.get_nowait())


async def _remove_dead_workers(
    workers: list[WorkerSlot], environment: Mapping[str, str], dead: asyncio.Queue[str]
) -> None:
    """Delete the heartbeat of each worker that is put into the queue, so that no barrier waits for
    it. Runs until cancelled. Failures are logged."""
    while True:
        await _remove(workers, environment, await dead.get())


async def _remove(
    workers: list[WorkerSlot], environment: Mapping[str, str], worker_id: str
) -> None:
    """Delete the heartbeat of the worker, in a process of its fork server. A failure is logged as
    the warning `dead_worker_not_removed` and not raised."""
    try:
        await workers[0].fork_server.run_task(
            FORGET_WORKER, {**environment, "QUARTAPP_WORKER_ID": worker_id}
        )
    except Exception as error:
        # Barriers ignore it once it is old: see models.Worker.
        log.warning("dead_worker_not_removed", error=type(error).__name__)


async def _renew_on_request(
    workers: list[WorkerSlot], renewal: asyncio.Event, stack: AsyncExitStack
) -> None:
    """Replace all worker processes each time `renewal` is set. Runs until cancelled.

    The new processes start one after the other, from a new fork server. When all are ready, the old
    ones exit together: a page whose socket is closed reconnects to a new worker, so it reconnects
    once. If the new fork server cannot be started or a new process does not get ready, all new ones
    are killed and the old ones stay. Logs `renewal_begins`, and then `renewal_done` or the error
    `renewal_failed`. Closes fork servers that no worker uses any more; the others are closed by
    `stack`.
    """
    while True:
        await renewal.wait()
        renewal.clear()
        log.info("renewal_begins")
        try:
            fork_server = await ForkServerClient.start()
        except OSError as error:
            log.error("renewal_failed", error=f"{type(error).__name__}: {error}")
            continue
        stack.push_async_callback(fork_server.close)
        used_before = {worker.fork_server for worker in workers}
        for index, worker in enumerate(workers):
            if not await worker.start_successor(fork_server):
                log.error("renewal_failed", worker=index)
                await asyncio.gather(*(each.kill_successor() for each in workers))
                break
        else:
            await asyncio.gather(*(worker.hand_over(fork_server) for worker in workers))
            log.info("renewal_done")
        used_now = {worker.fork_server for worker in workers}
        for unused in {fork_server, *used_before} - used_now:
            await unused.close()


@contextmanager
def _exclusive_data_folder(settings: Settings) -> Iterator[None]:
    """Lock the data folder for the length of the block, and register this server for commands that
    look for its folder (`servers.registered`, which leaves it out if it cannot write its registry).

    If MONGODB_URI is set, runs the block without lock and registration. Otherwise creates the
    folders of the embedded database if they are missing, and locks the file `server.lock`, which
    stays when the lock ends. Raises StartError, without waiting, if another server has the lock; if
    the folders cannot be created or written to; and if the path is too long for a socket.
    """
    if settings.mongodb_uri:
        yield
        return
    place = embedded.DataFolder(settings.data)
    place.create()
    with place.start_lock.with_name("server.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another quartapp serves from {settings.data} already") from None
        with servers.registered(settings.data):
            yield


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[str]:
    """Yield the URI of the database: MONGODB_URI, or that of the embedded one, which runs for the
    length of the block. Raises StartError if that cannot be started."""
    if settings.mongodb_uri:
        yield settings.mongodb_uri.get_secret_value()
        return
    async with embedded.running(settings.data) as database:
        yield database.uri


def _origin(listeners: list[socket.socket]) -> str:
    """Return the http origin of the address on which the sockets listen."""
    ip, port = listeners[0].getsockname()[:2]
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


def _announce(
    settings: Settings, url: str, count: int, database: str, setup_path: str | None
) -> None:
    """Print one line with the address, the workers and the database, and a second one with the link
    of the setup page if there is no administrator. In production, both are JSON."""
    workers = f"{count} worker{'s' if count > 1 else ''}"
    production = settings.production
    print_line(
        "server_started",
        f"quartapp serves {url} with {workers} on {database}",
        production=production,
        address=url,
        workers=count,
        database=database,
    )
    if setup_path:
        link = f"{settings.base_url if settings.knows_origin else url}{setup_path}"
        print_line(
            "administrator_missing",
            f"No administrator yet. Create the first one here, once, within the hour: {link}",
            production=production,
            link=link,
        )
