"""The launcher: one hypercorn process per worker, drained when it ends, replaced when it dies.

hypercorn's own `workers=N` stops every worker when one dies, and ends sockets without a word. Here
the launcher holds the listening sockets, so that nobody is refused while a worker is replaced. Each
worker holds one end of a lifeline whose other end only the launcher has: it says on it that it is
ready, and leaves when it breaks.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import ipaddress
import os
import resource
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

from hypercorn.asyncio import serve as serve_http
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError
from pydantic import SecretStr

from quartapp import create_app, embedded, metrics, prepare, wire
from quartapp.log import configure, log
from quartapp.settings import Settings, StartError

READY_SECONDS = 30
GRACE_SECONDS = 10
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
HEALTHY_SECONDS = 30
DEATHS_PER_MINUTE = 10
BACKLOG = 2048
ACCEPTED_AT_ONCE = 32
READY = b"ready"


def serve(settings: Settings, *, host: str, port: int, workers: int) -> int:
    """Serves until SIGTERM or SIGINT, and returns the exit status.

    Raises StartError when that cannot be, or when a worker dies again and again.
    """
    configure(production=settings.production)
    _allow_many_files()
    return asyncio.run(_until_signalled(settings, host, port, workers))


def _allow_many_files() -> None:
    """Each connection is an open file, and the limit that a shell sets is low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _until_signalled(settings: Settings, host: str, port: int, workers: int) -> int:
    """A signal cancels the launcher wherever it is, and each step puts its own things away."""
    haste = asyncio.Event()
    launcher = asyncio.create_task(_launch(settings, host, port, workers, haste))

    def stop() -> None:
        if launcher.cancelling():
            haste.set()
        else:
            launcher.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop)
    with suppress(asyncio.CancelledError):
        await launcher
    return 0


async def _launch(
    settings: Settings, host: str, port: int, workers: int, haste: asyncio.Event
) -> None:
    with (
        _only_server(settings),
        _listening(settings, host, port, workers) as listeners,
        TemporaryDirectory(prefix="quartapp-") as numbers,
    ):
        async with _database(settings) as uri:
            prepared = await prepare(settings.model_copy(update={"mongodb_uri": SecretStr(uri)}))
            environment = {
                **os.environ,
                "QUARTAPP_DATA": str(settings.data),
                "MONGODB_URI": uri,
                metrics.FOLDER: numbers,
            }
            started = [asyncio.Event() for _ in listeners]
            try:
                async with asyncio.TaskGroup() as group:
                    for index, listener in enumerate(listeners):
                        group.create_task(
                            _keep_alive(index, listener, environment, started[index], haste)
                        )
                    for event in started:
                        await event.wait()
                    database = prepared.database
                    if not settings.mongodb_uri:
                        database = f"embedded {database} in {settings.data}"
                    _announce(listeners, database, prepared.setup_path)
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None


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


@contextmanager
def _listening(
    settings: Settings, host: str, port: int, count: int
) -> Iterator[list[socket.socket]]:
    """A socket for each worker on the same port: so the kernel spreads connections evenly."""
    family, ip = _address(settings, host)
    with ExitStack() as stack:
        try:
            if port:
                # Sockets that share a port would share it with another server's too.
                _listen(family, ip, port, shared=False).close()
            listeners = [stack.enter_context(_listen(family, ip, port, shared=True))]
            port = listeners[0].getsockname()[1]
            for _ in range(count - 1):
                listeners.append(stack.enter_context(_listen(family, ip, port, shared=True)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"port {port} on {ip} is in use: choose another --port") from None
            raise StartError(f"cannot listen on {ip} port {port}: {error.strerror}") from None
        yield listeners


def _address(settings: Settings, host: str) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(
            host or None, None, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartError(f"cannot resolve the host {host}: {error.strerror}") from None
    addresses = [(family, str(address[0])) for family, _, _, _, address in found]
    if not settings.production and not all(
        ipaddress.ip_address(ip).is_loopback for _, ip in addresses
    ):
        raise StartError(
            f"development serves this machine alone and not {host or 'every address'}: "
            "use --host 127.0.0.1, or set QUARTAPP_ENV=production"
        )
    return min(addresses, key=lambda each: each[0] != socket.AF_INET)


def _listen(family: socket.AddressFamily, ip: str, port: int, *, shared: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((ip, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[str]:
    if settings.mongodb_uri:
        yield settings.mongodb_uri.get_secret_value()
        return
    async with embedded.running(settings.data) as database:
        yield database.uri


def _announce(listeners: list[socket.socket], database: str, setup_path: str | None) -> None:
    ip, port = listeners[0].getsockname()[:2]
    url = f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"
    workers = f"{len(listeners)} worker{'s' if len(listeners) > 1 else ''}"
    print(f"quartapp serves {url} with {workers} on {database}", flush=True)
    if setup_path:
        print(
            "No administrator yet. Make the first one here, once, within the hour: "
            f"{url}{setup_path}",
            flush=True,
        )


async def _keep_alive(
    index: int,
    listener: socket.socket,
    environment: dict[str, str],
    started: asyncio.Event,
    haste: asyncio.Event,
) -> None:
    """Runs one worker, and another in its place when it dies; ends it when cancelled."""
    environment = environment | {"QUARTAPP_WORKER": str(index)}
    loop = asyncio.get_running_loop()
    deaths: deque[float] = deque(maxlen=DEATHS_PER_MINUTE + 1)
    pause = SHORTEST_PAUSE
    while True:
        born = loop.time()
        status = await _live(listener, environment, started, haste)
        if not started.is_set():
            raise StartError("a worker could not start, it says why above")
        deaths.append(loop.time())
        if len(deaths) > DEATHS_PER_MINUTE and deaths[-1] - deaths[0] < 60:
            raise StartError(f"worker {index} died {len(deaths)} times within a minute")
        if deaths[-1] - born > HEALTHY_SECONDS:
            pause = SHORTEST_PAUSE
        log.warning("worker_died", worker=index, status=status)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


async def _live(
    listener: socket.socket,
    environment: dict[str, str],
    started: asyncio.Event,
    haste: asyncio.Event,
) -> int:
    """The life of one worker, and the status it ends with."""
    lifeline, theirs = socket.socketpair()
    with lifeline:
        lifeline.setblocking(False)
        with theirs:
            # In a session of its own: a Ctrl-C in the terminal is for the launcher alone.
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "quartapp.serving"],
                *[str(listener.fileno()), str(theirs.fileno())],
                pass_fds=[listener.fileno(), theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        try:
            if await _says_ready(lifeline):
                started.set()
            else:
                _signal(process, signal.SIGKILL)
            status = await process.wait()
            metrics.forget(process.pid, environment.get(metrics.FOLDER))
            return status
        except asyncio.CancelledError:
            # Closed first, so that the kernel queues nobody for a worker that leaves.
            listener.close()
            _signal(process, signal.SIGTERM)
            await _first_of(process.wait(), haste.wait(), seconds=GRACE_SECONDS)
            _signal(process, signal.SIGKILL)
            await process.wait()
            raise


async def _says_ready(lifeline: socket.socket) -> bool:
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(READY_SECONDS):
            return await asyncio.get_running_loop().sock_recv(lifeline, len(READY)) == READY
    return False


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(number)


async def _first_of(*waits: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Waits until one of them is done, and forgets the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _work(listener: int, lifeline: socket.socket) -> None:
    """One worker: serves until SIGTERM, or until the launcher is gone."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    wire.harden()
    app = create_app(Settings.load())
    # What is there for good need not be looked at whenever garbage is collected.
    gc.freeze()

    async def leave() -> None:
        # The server set the kernel's queue to what it may take out of it in one turn of the loop.
        with socket.socket(fileno=os.dup(listener)) as same:
            same.listen(BACKLOG)
        with suppress(ConnectionError):
            await loop.sock_sendall(lifeline, READY)
            await _first_of(told.wait(), loop.sock_recv(lifeline, 1))
        # The launcher may not be there to end a worker that cannot end itself.
        signal.alarm(GRACE_SECONDS)
        await app.extensions["quartapp"].drain()

    await serve_http(app, _config(listener), shutdown_trigger=leave)


def _config(listener: int) -> Config:
    config = Config()
    config.bind = [f"fd://{listener}"]
    # asyncio accepts as many connections in one turn of its loop, while all else waits.
    config.backlog = ACCEPTED_AT_ONCE
    config.graceful_timeout = 3
    # Frames that still come in when a handler is over would fill a bounded queue, which nobody
    # empties then, and hold the connection for ever. Quart takes in all that comes in any case.
    config.max_app_queue_size = 0
    config.keep_alive_timeout = 15
    config.h11_max_incomplete_size = 32 * 1024
    config.websocket_max_message_size = 64 * 1024
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = "-"
    config.loglevel = "WARNING"
    return config


def _main() -> int:
    listener, lifeline = map(int, sys.argv[1:])
    end = socket.socket(fileno=lifeline)
    end.setblocking(False)
    try:
        asyncio.run(_work(listener, end))
    except (StartError, LifespanFailureError) as error:
        print(f"quartapp: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
