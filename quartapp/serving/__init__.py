"""The launcher: one hypercorn process per worker, drained when it ends, replaced when it dies.

hypercorn's own `workers=N` stops every worker when one dies, and ends sockets without a word. Here
the launcher holds the listening sockets, so that nobody is refused while a worker is replaced.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import SecretStr

from quartapp import forget_worker, metrics, prepare, servers
from quartapp.db import embedded
from quartapp.log import adopt, configure, log, say
from quartapp.routes import health
from quartapp.serving.listeners import listening
from quartapp.serving.workers import Nursery, Worker
from quartapp.settings import Settings, StartError


def serve(settings: Settings, *, host: str, port: int, workers: int) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status.

    SIGTERM drains first, for `drain_seconds`. SIGHUP renews the workers; from a terminal, it ends
    the server. Raises StartError when the server cannot start.
    """
    _allow_many_files()
    nursery = Nursery.forked()
    configure(production=settings.production)
    adopt()
    return asyncio.run(_until_signalled(settings, host, port, workers, nursery))


def _allow_many_files() -> None:
    """Each connection is an open file, and the limit that a shell sets is low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _until_signalled(
    settings: Settings, host: str, port: int, workers: int, nursery: Nursery
) -> int:
    """A signal cancels the launcher wherever it is, and each step puts its own things away."""
    told = Told()
    launcher = asyncio.create_task(_launch(settings, host, port, workers, nursery, told))
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if launcher.cancelling():
            told.haste.set()
            return
        if settings.production:
            log.info("server_stopping", signal=number.name)
        if number is signal.SIGTERM and told.drain is not None and not told.drain.exists():
            told.drain.touch()
            loop.call_later(settings.drain_seconds, launcher.cancel)
        else:
            launcher.cancel()

    # A terminal that closes says SIGHUP as well, and means the end.
    hang_up = partial(stop, signal.SIGHUP) if os.isatty(0) else told.renewal.set
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
class Told:
    """What signals tell the launcher.

    `drain` is the file whose existence has `/readyz` answer 503, once the server serves and if it
    is to drain at all.
    """

    haste: asyncio.Event = field(default_factory=asyncio.Event)
    renewal: asyncio.Event = field(default_factory=asyncio.Event)
    drain: Path | None = None


async def _launch(
    settings: Settings,
    host: str,
    port: int,
    count: int,
    nursery: Nursery,
    told: Told,
) -> None:
    settings.make_data_folder()
    with (
        _only_server(settings),
        listening(settings, host, port, count) as listeners,
        TemporaryDirectory(prefix="quartapp-") as folder,
    ):
        async with AsyncExitStack() as stack:
            stack.push_async_callback(nursery.close)
            uri = await stack.enter_async_context(_database(settings))
            allow_old = settings.allow_old_mongodb or settings.mongodb_uri is None
            update = {"mongodb_uri": SecretStr(uri), "allow_old_mongodb": allow_old}
            connected = settings.model_copy(update=update)
            prepared = await prepare(connected)
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
            workers = [
                Worker(index, nursery, listener, environment, told.haste, dead.put_nowait)
                for index, listener in enumerate(listeners)
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_forget_the_dead(connected, dead))
                    for worker in workers:
                        group.create_task(worker.keep_alive())
                    for worker in workers:
                        await worker.started.wait()
                    database = prepared.database
                    if not settings.mongodb_uri:
                        database = f"embedded {database} in {settings.data}"
                    _announce(settings, origin, len(listeners), database, prepared.setup_path)
                    if settings.drain_seconds:
                        told.drain = Path(folder) / health.DRAINING
                    await _renew_when_told(workers, told.renewal, stack)
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                while not dead.empty():
                    await _forget(connected, dead.get_nowait())


async def _forget_the_dead(settings: Settings, dead: asyncio.Queue[str]) -> None:
    """Delete the heartbeats of workers that were killed: nobody has to wait for them."""
    while True:
        await _forget(settings, await dead.get())


async def _forget(settings: Settings, worker_id: str) -> None:
    try:
        await forget_worker(settings, worker_id)
    except Exception as error:
        # Then it goes stale: see models.Worker.
        log.warning("dead_worker_not_removed", error=type(error).__name__)


async def _renew_when_told(
    workers: list[Worker], renewal: asyncio.Event, stack: AsyncExitStack
) -> None:
    """Replace all workers by new ones for each renewal.

    The new ones start one after the other, and the old ones leave together when all are ready: a
    page whose socket is closed comes back to a new worker, so it is told once.
    """
    while True:
        await renewal.wait()
        renewal.clear()
        log.info("renewal_begins")
        nursery = await Nursery.started()
        stack.push_async_callback(nursery.close)
        were_in_use = {worker.nursery for worker in workers}
        for index, worker in enumerate(workers):
            if not await worker.start_successor(nursery):
                # What serves goes on serving.
                log.error("renewal_failed", worker=index)
                await asyncio.gather(*(each.dismiss_successor() for each in workers))
                break
        else:
            await asyncio.gather(*(worker.hand_over(nursery) for worker in workers))
            log.info("renewal_done")
        for each in {nursery, *were_in_use} - {worker.nursery for worker in workers}:
            await each.close()


@contextmanager
def _only_server(settings: Settings) -> Iterator[None]:
    """Of servers with an embedded database, a data folder has one."""
    if settings.mongodb_uri:
        yield
        return
    place = embedded.Place(settings.data)
    place.make()
    with place.lock.with_name("server.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another quartapp serves from {settings.data} already") from None
        with servers.announced(settings.data):
            yield


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[str]:
    if settings.mongodb_uri:
        yield settings.mongodb_uri.get_secret_value()
        return
    async with embedded.running(settings.data) as database:
        yield database.uri


def _origin(listeners: list[socket.socket]) -> str:
    ip, port = listeners[0].getsockname()[:2]
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


def _announce(
    settings: Settings, url: str, count: int, database: str, setup_path: str | None
) -> None:
    workers = f"{count} worker{'s' if count > 1 else ''}"
    production = settings.production
    say(
        "server_started",
        f"quartapp serves {url} with {workers} on {database}",
        production=production,
        address=url,
        workers=count,
        database=database,
    )
    if setup_path:
        link = f"{settings.base_url if settings.knows_origin else url}{setup_path}"
        say(
            "administrator_missing",
            f"No administrator yet. Create the first one here, once, within the hour: {link}",
            production=production,
            link=link,
        )
