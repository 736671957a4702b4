"""A running server with thousands of signed-in users, for the other benchmarks.

The users and their sessions are written directly to the database, because signing in is not what is
measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from beanie import PydanticObjectId
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from quart import Quart

from bench.tabs import LINE_BYTES, several
from quartapp import auth, models
from quartapp.db import mongo
from quartapp.db.embedded import DataFolder
from quartapp.models import Role, User
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.models.sessions.opening import open_session
from quartapp.policy import ADMIN
from quartapp.settings import Settings
from tests.conftest import serving
from tests.people import Server, until

AT_ONCE = 16
PER_PERSON = 20


@dataclass(frozen=True)
class Someone:
    """A user with one cookie for each of their sessions."""

    user_id: PydanticObjectId
    username: str
    cookies: list[str]


@dataclass
class House:
    """A running server with a connection to its database; `root` is an administrator's cookie."""

    server: Server
    cookie: Callable[[str], str]
    root: str = ""

    async def people(
        self, name: str, count: int, *, role: Role, sessions: int = 1
    ) -> list[Someone]:
        """Create `count` users who hold the role, each with this many sessions."""

        async def make(number: int) -> Someone:
            username = f"{name}{number}"
            user = await register_account(
                username, f"{username}@example.org", "no password", roles=[role], by=SYSTEM
            )
            return Someone(user.id, username, [await self._sign_in(user) for _ in range(sessions)])

        return await several(make, range(count), at_once=AT_ONCE)

    async def _sign_in(self, user: User) -> str:
        day = timedelta(days=1)
        _, token, _ = await open_session(user, device="bench", by=SYSTEM, idle=day, lifetime=day)
        return self.cookie(token)

    @asynccontextmanager
    async def caller(self, cookie: str, worker: str | None = None) -> AsyncIterator[Caller]:
        """Open an HTTP connection to the server, or to the named worker if there is one."""
        while True:
            caller = await Caller.open(self.server.url, cookie)
            try:
                if worker in (None, self._worker_at(caller.port)):
                    yield caller
                    return
            finally:
                caller.close()

    def _worker_at(self, port: int) -> str | None:
        """Return the worker that holds the other end of the connection from this local port."""
        ends = f":{urlsplit(self.server.url).port:04X}", f":{port:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines():
            _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
            if (local[-5:], remote[-5:]) == ends:
                held = f"socket:[{inode}]"
                for name, process in self.processes().items():
                    for file in Path(f"/proc/{process}/fd").iterdir():
                        # A file that was closed since the folder was read is not the one.
                        with suppress(FileNotFoundError):
                            if os.readlink(file) == held:
                                return name
        return None

    def processes(self) -> dict[str, int]:
        """Return the process ids of the workers, by their names."""
        workers = int(self.server.line.split(" with ")[1].split()[0])
        return {str(i): self.server.worker(str(i)) for i in range(workers)}

    def resident(self) -> int:
        """Return the resident memory of all workers together, in bytes."""
        statuses = (Path(f"/proc/{pid}/status").read_text() for pid in self.processes().values())
        return sum(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024 for status in statuses)

    async def numbers(self) -> dict[str, float]:
        """Return the values of /metrics by name; a histogram bucket's name ends with its bound."""
        async with self.caller(self.root) as caller:
            status, body = await caller.get("/metrics")
        assert status == 200, body
        return {
            sample.name + (f" {sample.labels['le']}" if "le" in sample.labels else ""): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }

    async def emptied(self) -> None:
        """Wait until no WebSocket is open, at most 30 s."""

        async def empty() -> bool:
            return not (await self.numbers())["quartapp_sockets"]

        await until(empty, within=30)

    @asynccontextmanager
    async def crowd(self, processes: int) -> AsyncIterator[Crowd]:
        """Run this many client processes (`bench.tabs`); end them on exit."""
        crowd = Crowd([await self._process() for _ in range(processes)])
        try:
            yield crowd
        finally:
            # A client process ends when its standard input is closed.
            for process in crowd.processes:
                assert process.stdin is not None
                process.stdin.close()
                await process.wait()

    async def _process(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.tabs", self.server.url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )


@asynccontextmanager
async def house(workers: int, **env: Any) -> AsyncIterator[House]:
    """Run `quartapp serve` on a temporary folder, with default settings except for these.

    A ping is sent every 20 s and open sessions are checked every 30 s, so that neither disturbs.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data = Path(folder) / "d"
        async with serving(
            data, workers=workers, LIVE_PING_SECONDS="20", LIVE_SWEEP_SECONDS="30", **env
        ) as server:
            # Raised only now, so that the server does not inherit it and must raise its own limit.
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            settings = Settings.load(data=data, mongodb_uri=SecretStr(DataFolder(data).uri))
            async with mongo.connected(settings, models.DOCUMENTS):
                house = House(server, _cookies(settings))
                admin = await Role.named(ADMIN)
                assert admin is not None
                (root,) = await house.people("root", 1, role=admin)
                house.root = root.cookies[0]
                yield house


def _cookies(settings: Settings) -> Callable[[str], str]:
    """Return a function from a session's token to its cookie header, signed like Quart-Auth's."""
    app = Quart(__name__)
    app.secret_key = settings.secret_key.get_secret_value()
    extension = auth.init_app(app, settings)
    return lambda token: f"{extension.cookie_name}={extension.dump_token(token, app)}"


class Caller:
    """A keep-alive HTTP connection that adds as little as possible to the measured times."""

    def __init__(
        self, url: str, cookie: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.port: int = writer.get_extra_info("sockname")[1]
        self._head = f"Host: {urlsplit(url).netloc}\r\nOrigin: {url}\r\nCookie: {cookie}\r\n"
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str, cookie: str) -> Self:
        address = urlsplit(url)
        caller = cls(url, cookie, *await asyncio.open_connection(address.hostname, address.port))
        # Before the first answer, the connection may still be in the kernel's queue.
        await caller.get("/livez")
        return caller

    async def get(self, path: str) -> tuple[int, str]:
        return await self._ask(f"GET {path} HTTP/1.1\r\n{self._head}\r\n")

    async def post(self, path: str, fields: dict[str, Any]) -> tuple[int, str]:
        """Send a form. `fields` must contain the token that `csrf_token` returned."""
        body = urlencode(fields, doseq=True)
        return await self._ask(
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}"
        )

    async def csrf_token(self) -> str:
        """Return the CSRF token of the session, which is valid for every form."""
        _, page = await self.get("/")
        found = re.search(r'name="csrf_token" value="([^"]+)"', page)
        assert found, page
        return found[1]

    async def _ask(self, request: str) -> tuple[int, str]:
        self._writer.write(request.encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        assert length, head
        body = await self._reader.readexactly(int(length[1]))
        return int(head.split()[1]), body.decode()

    def close(self) -> None:
        self._writer.close()


@dataclass
class Crowd:
    """Open tabs, spread evenly over client processes."""

    processes: list[asyncio.subprocess.Process]

    async def open(self, cookies: list[str], *, at_once: int = 64) -> int:
        """Open a tab for each cookie, and return how many attempts were refused and repeated.

        An overloaded server answers 503 or closes with 1013, and a page then connects again.
        """
        count = len(self.processes)
        return sum(
            await asyncio.gather(
                *(
                    self._tell(process, "open", cookies[i::count], at_once // count)
                    for i, process in enumerate(self.processes)
                )
            )
        )

    async def told(self, kind: str) -> list[float]:
        """Wait until all tabs have received this type of message; return when each first did."""
        return [moment for moments in await self._all("told", kind) for moment in moments]

    async def codes(self) -> list[int]:
        """Return the close code of each tab; 0 for open ones."""
        return [code for codes in await self._all("codes") for code in codes]

    async def forget(self) -> None:
        """Forget which messages the tabs have received, so that `told` waits for new ones."""
        await self._all("forget")

    async def leave(self) -> None:
        """Close all tabs."""
        await self._all("leave")

    async def _all(self, *order: Any) -> list[Any]:
        return await asyncio.gather(*(self._tell(each, *order) for each in self.processes))

    async def _tell(self, process: asyncio.subprocess.Process, *order: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        answer = await process.stdout.readline()
        assert answer, "a process of the crowd has died"
        return json.loads(answer)


@contextmanager
def this_machine() -> Iterator[None]:
    """Print the machine and the versions, and at the end how much CPU time the host of a virtual
    machine withheld (steal)."""
    packages = ("quart", "hypercorn", "motor", "beanie")
    named = ", ".join(f"{name} {version(name)}" for name in packages)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {named}"
    )
    before = processors()
    yield
    used, stolen = (b - a for a, b in zip(before, processors(), strict=True))
    print(f"stolen by the host: {stolen / (used + stolen or 1):.0%} of the CPU time demanded")


def processors() -> tuple[int, int]:
    """Return the ticks that all CPUs were busy, and those that the host withheld. Zero where
    /proc/stat does not exist."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except FileNotFoundError:
        return 0, 0
    user, nice, system, _, _, irq, softirq, steal, *_ = ticks
    return user + nice + system + irq + softirq, steal


def percentile(values: Collection[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
