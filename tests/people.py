"""Servers, commands and users for tests, over real processes and real sockets."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import httpx
import websockets
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorDatabase
from pymongo import UpdateOne
from websockets.asyncio.client import ClientConnection, connect

# Time limit of a wait. It is long enough for a busy machine.
SECONDS = 30.0


async def until(
    condition: Callable[[], Awaitable[object]], *, within: float = SECONDS, every: float = 0.02
) -> None:
    """Poll the condition until it is true, `every` so many seconds. Raises TimeoutError."""
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(every)


def http_client(url: str, *, timeout: float = SECONDS, **options: Any) -> httpx.AsyncClient:
    """Return a client of a server that is reached without TLS.

    Without `verify=False` each client would load all certificates, which takes as long as several
    requests.
    """
    return httpx.AsyncClient(base_url=url, timeout=timeout, verify=False, **options)


@dataclass(frozen=True)
class CommandResult:
    """The result of a command."""

    status: int
    out: str
    err: str


# Commands are forked from a process that has imported everything, which is what takes long.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.preload"])
# multiprocessing reads the status of all its processes when it starts one, so one thread does both.
_one_thread = ThreadPoolExecutor(1)


async def command(*words: str, data: Path, stdin: bytes = b"", **env: str) -> CommandResult:
    """Run a `quartapp` command to its end, with this on its standard input."""
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "in").write_bytes(stdin)
        running = Running(*words, "--data", str(data), folder=Path(folder), stdin=file, env=env)
        await running.start()
        return await running.end()


BeforeStart = Callable[[], object]


class Running:
    """A `quartapp` process with its standard streams in files.

    It calls `before_start` before anything else. Passwords are hashed at the lowest cost. One hash
    of the usual cost in the database would make every sign-in take as long as that one.
    """

    def __init__(
        self,
        *words: str,
        folder: Path,
        env: Mapping[str, str],
        stdin: Path = Path(os.devnull),
        before_start: BeforeStart | None = None,
    ) -> None:
        self._words = words
        self._streams = stdin, folder / "out", folder / "err"
        self._process = _forks.Process(
            target=_become,
            args=(words, self._streams, {**os.environ, "BCRYPT_COST": "4", **env}, before_start),
        )
        self._read = 0

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def out(self) -> str:
        return self._streams[1].read_text()

    @property
    def err(self) -> str:
        return self._streams[2].read_text()

    async def start(self) -> None:
        for path in self._streams[1:]:
            path.touch()
        await asyncio.get_running_loop().run_in_executor(_one_thread, self._process.start)

    async def _status(self) -> int | None:
        return await asyncio.get_running_loop().run_in_executor(
            _one_thread, lambda: self._process.exitcode
        )

    async def _has_ended(self) -> bool:
        return await self._status() is not None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def line(self, *, within: float) -> str:
        """Wait for the next line of its output, or for its end, and return the line."""

        async def has_line() -> bool:
            return await self._has_ended() or "\n" in self.out[self._read :]

        await until(has_line, within=within, every=0.05)
        line, newline, _ = self.out[self._read :].partition("\n")
        self._read += len(line + newline)
        return line + newline

    async def end(self, *, within: float = 2 * SECONDS) -> CommandResult:
        """Wait until it ends. If it takes too long, kill it and raise TimeoutError."""
        try:
            await until(self._has_ended, within=within)
        except TimeoutError:
            self._process.kill()
            raise TimeoutError(self._words, self.err) from None
        return CommandResult(await self._status() or 0, self.out, self.err)


def _become(
    words: tuple[str, ...],
    streams: tuple[Path, ...],
    env: dict[str, str],
    before_start: BeforeStart | None,
) -> None:
    """Run the command in the new process, with its streams and its environment."""
    from quartapp import cli

    for number, (path, mode) in enumerate(zip(streams, ("r", "w", "w"), strict=True)):
        with path.open(mode) as file:
            os.dup2(file.fileno(), number)
    encoding, errors = env.get("PYTHONIOENCODING", "utf-8:strict").split(":")
    sys.stdin = os.fdopen(0, encoding=encoding, errors=errors)
    os.environ.clear()
    os.environ.update(env)
    if before_start:
        before_start()
    cli.main(words, prog_name="quartapp")


@dataclass(frozen=True)
class Stat:
    """A line of /proc/<pid>/stat."""

    name: str
    state: str
    parent: int

    @classmethod
    def of(cls, process: int) -> Self:
        """Read the line of a process. Raises OSError if there is none."""
        text = Path(f"/proc/{process}/stat").read_text()
        name, _, rest = text.partition("(")[2].rpartition(")")
        state, parent, *_ = rest.split()
        return cls(name, state, int(parent))


def workers_of(launcher: int) -> Iterator[tuple[int, str]]:
    """Yield the process id and the name of each worker: the children of its fork server."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found[int(process.name)] = Stat.of(int(process.name))
    for process, stat in found.items():
        fork_server = found.get(stat.parent)
        if stat.name.startswith("worker-") and fork_server and fork_server.parent == launcher:
            yield process, stat.name


@dataclass
class Server:
    """A running `quartapp serve`."""

    url: str
    data: Path
    process: Running
    line: str

    def stderr(self) -> str:
        """Return what it has written to standard error so far, which includes its log."""
        return self.process.err

    async def metric(self, name: str) -> float:
        """Return the value of a metric, summed over all workers."""
        async with http_client(self.url) as client:
            text = (await client.get("/metrics")).text
        found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def worker(self, name: str) -> int:
        """Return the process id of the worker that has this name in `hello`."""
        for process, called in workers_of(self.process.pid):
            if called == f"worker-{name}":
                return process
        raise AssertionError(f"there is no worker {name}")

    @asynccontextmanager
    async def database(self) -> AsyncIterator[AsyncIOMotorDatabase[Any]]:
        """Open the database directly, as the mongo shell does."""
        path = quote(str(self.data / "mongod.sock"), safe="")
        client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(
            f"mongodb://{path}/?directConnection=true", tz_aware=True
        )
        try:
            yield client["quartapp"]
        finally:
            client.close()

    async def last_event(self, username: str, verb: str) -> dict[str, Any]:
        """Return the newest event of this kind about the user from the audit log, with its
        receipts."""
        async with self.database() as database:
            user = await database["users"].find_one({"username": username})
            assert user
            match = {"subject.$id": user["_id"], "verb": verb}
            event = await database["events"].find_one(match, sort=[("_id", -1)])
            assert event
            receipts = await database["receipts"].find_one({"_id": event["_id"]})
            return {"receipts": [], "silent_worker": False, **event, **(receipts or {})}

    async def run(self, *words: str, stdin: str = "", status: int = 0) -> str:
        """Run a `quartapp` command beside the server, and return its output or its error."""
        ran = await command(*words, data=self.data, stdin=f"{stdin}\n".encode())
        assert ran.status == status, f"{words}: {ran.out}{ran.err}"
        return ran.err if status else ran.out


class Tab:
    """The socket of one open page. `messages` holds all messages received so far."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []

    @property
    def hello(self) -> dict[str, Any]:
        return self.messages[0]

    async def next(self, kind: str | None = None) -> dict[str, Any]:
        """Return the next message, or the next of this kind. Answers pings and acknowledges."""
        async with asyncio.timeout(SECONDS):
            while True:
                message = json.loads(await self.socket.recv())
                self.messages.append(message)
                # The end notice may be read after the close frame behind it has arrived.
                with suppress(websockets.ConnectionClosed):
                    if message["type"] == "ping":
                        await self.send(type="pong", at=message["at"])
                    elif "id" in message:
                        await self.send(type="ack", id=message["id"])
                if kind in (None, message["type"]):
                    return message

    async def send(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def received(self, kind: str) -> list[dict[str, Any]]:
        """Return all messages of this kind so far; of a closed socket, all that it received."""
        with suppress(websockets.ConnectionClosed):
            # The answer comes after all messages that were sent before it.
            await (await self.socket.ping())
        with suppress(websockets.ConnectionClosed, TimeoutError):
            while True:
                async with asyncio.timeout(0.01):
                    await self.next()
        return [message for message in self.messages if message["type"] == kind]

    async def closed(self, *, within: float = SECONDS) -> int:
        """Wait until the server closes the socket, and return the code."""
        try:
            async with asyncio.timeout(within):
                while True:
                    await self.next()
        except websockets.ConnectionClosed as closed:
            if closed.rcvd is None:
                raise AssertionError("the connection broke without a close frame") from None
            return closed.rcvd.code

    async def is_open(self) -> bool:
        """Return whether the server answers a ping frame."""
        try:
            async with asyncio.timeout(SECONDS):
                await (await self.socket.ping())
        except websockets.ConnectionClosed:
            return False
        return True


@dataclass
class Person:
    """A user with one browser, whose cookies pages and sockets share."""

    url: str
    username: str
    password: str
    client: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = http_client(self.url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    @property
    def email(self) -> str:
        return f"{self.username}@example.org"

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)

    async def status(self, path: str, **headers: str) -> int:
        """Send a GET on a new connection, so that any worker may answer, and return the status."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        lines = {"Host": address.netloc, "Cookie": self.cookies(), "Connection": "close"} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        try:
            async with asyncio.timeout(SECONDS):
                writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
                return int((await reader.readline()).split()[1])
        finally:
            writer.close()

    async def post(self, path: str, *, page: str | None = None, **fields: Any) -> httpx.Response:
        """Send a form with the CSRF token of a page, by default of the home page."""
        token = await self.csrf_token(page or "/")
        data = {"csrf_token": token, **fields}
        return await self.client.post(path, data=data, headers={"Origin": self.url})

    async def csrf_token(self, page: str) -> str:
        for path in (page, "/login"):
            found = re.search(
                r'name="csrf_token" value="([^"]+)"', (await self.client.get(path)).text
            )
            if found:
                return found[1]
        raise AssertionError(f"no form on {page}")

    async def register(self) -> None:
        answer = await self.post(
            "/register",
            page="/register",
            username=self.username,
            email=self.email,
            password=self.password,
            confirm=self.password,
        )
        assert answer.status_code == 303, answer.text

    async def sign_in(self, *, remember: bool = False) -> httpx.Response:
        fields = {"login": self.username, "password": self.password}
        if remember:
            fields["remember"] = "y"
        answer = await self.post("/login", page="/login", **fields)
        assert answer.status_code == 303, answer.text
        return answer

    async def me(self) -> dict[str, Any] | None:
        """Return the JSON of /api/me, or None when signed out."""
        answer = await self.get("/api/me")
        if answer.status_code == 401:
            return None
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def is_refused(self) -> bool:
        """Return whether a worker, whichever answers, refuses the session."""
        return await self.status("/api/me") == 401

    async def is_signed_in(self) -> bool:
        return await self.me() is not None

    def another_device(self) -> Person:
        """Return the same user with another browser, not signed in yet."""
        return Person(self.url, self.username, self.password)

    def cookies(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.client.cookies.items())

    @asynccontextmanager
    async def tab(
        self, *, cursor: str | None = None, page: str | None = None, worker: str | None = None
    ) -> AsyncIterator[Tab]:
        """Open a socket, of the page with this path if there is one, and wait for `hello`; on the
        given worker if one is named."""
        given = {"cursor": cursor, "page": page}
        query = urlencode({name: value for name, value in given.items() if value})
        for _ in range(100):
            async with connect(
                self.url.replace("http", "ws", 1) + f"/ws?{query}",
                origin=websockets.Origin(self.url),
                additional_headers={"Cookie": self.cookies()},
                compression=None,
            ) as socket:
                tab = Tab(socket)
                hello = await tab.next()
                if worker in (None, hello["worker"]):
                    yield tab
                    return
        raise AssertionError(f"no socket reached worker {worker}")

    @asynccontextmanager
    async def tabs(self, *workers: str) -> AsyncIterator[list[Tab]]:
        """Open a socket on each of these workers, by default on both."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(self.tab(worker=worker))
                for worker in workers or ("0", "1")
            ]


async def flood_change_stream(server: Server, person: Person) -> None:
    """Make thousands of changes of this user, which the change stream delivers before the next one.

    Otherwise a worker hears of a change within milliseconds, and a request that should have been
    refused would seldom be faster.
    """
    nudge = UpdateOne({"username": person.username}, {"$inc": {"nudges": 1}})
    async with server.database() as database:
        await database.users.bulk_write([nudge] * 4000, ordered=False)
