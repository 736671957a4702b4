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
from tempfile import TemporaryDirectory

from pydantic import SecretStr

from quartapp import embedded, forget_worker, metrics, prepare
from quartapp.log import adopt, configure, log
from quartapp.serving.listeners import listening
from quartapp.serving.workers import Nursery, Worker
from quartapp.settings import Settings, StartError


def serve(settings: Settings, *, host: str, port: int, workers: int) -> int:
    """Serves until SIGTERM or SIGINT, and returns the exit status.

    SIGHUP renews the workers one after the other; from a terminal, it ends the server.

    Raises StartError when that cannot be.
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
    haste, renewal = asyncio.Event(), asyncio.Event()
    launcher = asyncio.create_task(_launch(settings, host, port, workers, nursery, haste, renewal))

    def stop() -> None:
        if launcher.cancelling():
            haste.set()
        else:
            launcher.cancel()

    loop = asyncio.get_running_loop()
    # A terminal that closes says SIGHUP as well, and means the end.
    hang_up = stop if os.isatty(0) else renewal.set
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: hang_up}
    for number, handler in handlers.items():
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, handler)
    with suppress(asyncio.CancelledError):
        await launcher
    return 0


async def _launch(
    settings: Settings,
    host: str,
    port: int,
    count: int,
    nursery: Nursery,
    haste: asyncio.Event,
    renewal: asyncio.Event,
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
                Worker(index, nursery, listener, environment, haste, dead.put_nowait)
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
                    _announce(origin, len(listeners), database, prepared.setup_path)
                    await _renew_when_told(workers, renewal, stack)
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
    """One worker at a time, so that the others serve whatever comes of it."""
    while True:
        await renewal.wait()
        renewal.clear()
        log.info("renewal_begins")
        nursery = await Nursery.started()
        stack.push_async_callback(nursery.close)
        were_in_use = {worker.nursery for worker in workers}
        for index, worker in enumerate(workers):
            if not await worker.renew(nursery):
                # The next ones would fare no better: what serves goes on serving.
                log.error("renewal_failed", worker=index)
                break
        else:
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


def _announce(url: str, count: int, database: str, setup_path: str | None) -> None:
    workers = f"{count} worker{'s' if count > 1 else ''}"
    print(f"quartapp serves {url} with {workers} on {database}", flush=True)
    if setup_path:
        print(
            "No administrator yet. Make the first one here, once, within the hour: "
            f"{url}{setup_path}",
            flush=True,
        )
