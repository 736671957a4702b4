"""A server with people by the thousand, who need not sign in one by one: their sessions are made as
documents, beside the server."""

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
from quartapp import auth, database, models
from quartapp.embedded import Place
from quartapp.models import Role, Session, User
from quartapp.models.actor import NOBODY
from quartapp.policy import ADMIN
from quartapp.settings import Settings
from tests.conftest import serving
from tests.people import Server, until

AT_ONCE = 16
PER_PERSON = 20


@dataclass(frozen=True)
class Someone:
    """A person with a cookie for each of their sessions."""

    user_id: PydanticObjectId
    username: str
    cookies: list[str]


@dataclass
class House:
    """A running server, its database at hand, and an administrator."""

    server: Server
    cookie: Callable[[str], str]
    root: str = ""

    async def people(
        self, name: str, count: int, *, role: Role, sessions: int = 1
    ) -> list[Someone]:
        """So many people who hold the role, signed in so many times."""

        async def make(number: int) -> Someone:
            username = f"{name}{number}"
            user = await User.register(
                username, f"{username}@example.org", "no password", roles=[role], by=NOBODY
            )
            return Someone(user.id, username, [await self._sign_in(user) for _ in range(sessions)])

        return await several(make, range(count), at_once=AT_ONCE)

    async def _sign_in(self, user: User) -> str:
        day = timedelta(days=1)
        _, token = await Session.start(user, device="bench", by=NOBODY, idle=day, lifetime=day)
        return self.cookie(token)

    @asynccontextmanager
    async def caller(self, cookie: str, worker: str | None = None) -> AsyncIterator[Caller]:
        """A connection to the server; to this worker, if one is named."""
        while True:
            caller = await Caller.open(self.server.url, cookie)
            try:
                if worker in (None, self._worker_at(caller.port)):
                    yield caller
                    return
            finally:
                caller.close()

    def _worker_at(self, port: int) -> str | None:
        """Which worker has the other end of the connection from this port of ours."""
        ends = f":{urlsplit(self.server.url).port:04X}", f":{port:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines():
            _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
            if (local[-5:], remote[-5:]) == ends:
                held = f"socket:[{inode}]"
                for name, process in self.processes().items():
                    for file in Path(f"/proc/{process}/fd").iterdir():
                        # One that was closed since the folder was read is not ours.
                        with suppress(FileNotFoundError):
                            if os.readlink(file) == held:
                                return name
        return None

    def processes(self) -> dict[str, int]:
        """The process ids of the workers, by their names."""
        workers = int(self.server.line.split(" with ")[1].split()[0])
        return {str(i): self.server.worker(str(i)) for i in range(workers)}

    def resident(self) -> int:
        """Bytes of memory that the workers have together."""
        statuses = (Path(f"/proc/{pid}/status").read_text() for pid in self.processes().values())
        return sum(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024 for status in statuses)

    async def numbers(self) -> dict[str, float]:
        """What /metrics says: values by name, those of a histogram's buckets with their bound."""
        async with self.caller(self.root) as caller:
            status, body = await caller.get("/metrics")
        assert status == 200, body
        return {
            sample.name + (f" {sample.labels['le']}" if "le" in sample.labels else ""): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }

    async def emptied(self) -> None:
        """Returns when no socket is left."""

        async def empty() -> bool:
            return not (await self.numbers())["quartapp_sockets"]

        await until(empty, within=30)

    @asynccontextmanager
    async def crowd(self, processes: int) -> AsyncIterator[Crowd]:
        crowd = Crowd([await self._process() for _ in range(processes)])
        try:
            yield crowd
        finally:
            # They end when nobody can tell them anything any more.
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
    """Starts `quartapp serve` on a folder of its own, with the settings that it has by itself, or
    these."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data = Path(folder) / "d"
        async with serving(
            data, workers=workers, LIVE_PING_SECONDS="20", LIVE_SWEEP_SECONDS="30", **env
        ) as server:
            # Raised only now, so that the server has to see to its own limit.
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            settings = Settings.load(data=data, mongodb_uri=SecretStr(Place(data).uri))
            async with database.connected(settings, models.DOCUMENTS):
                house = House(server, _cookies(settings))
                admin = await Role.named(ADMIN)
                assert admin is not None
                (root,) = await house.people("root", 1, role=admin)
                house.root = root.cookies[0]
                yield house


def _cookies(settings: Settings) -> Callable[[str], str]:
    """From the token of a session to its cookie, as Quart-Auth would sign it."""
    app = Quart(__name__)
    app.secret_key = settings.secret_key.get_secret_value()
    extension = auth.init_app(app, settings)
    return lambda token: f"{extension.cookie_name}={extension.dump_token(token, app)}"


class Caller:
    """One connection that is kept alive. Adds as little as can be to the time of the answer."""

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
        # Until it has answered something, the kernel alone has taken the connection.
        await caller.get("/livez")
        return caller

    async def get(self, path: str) -> tuple[int, str]:
        return await self._ask(f"GET {path} HTTP/1.1\r\n{self._head}\r\n")

    async def post(self, path: str, fields: dict[str, Any]) -> tuple[int, str]:
        """Sends a form, with the token in it that `csrf_token` found."""
        body = urlencode(fields, doseq=True)
        return await self._ask(
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}"
        )

    async def csrf_token(self) -> str:
        """Of the session: it fits every form."""
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
    """The tabs of other processes, spread evenly over them."""

    processes: list[asyncio.subprocess.Process]

    async def open(self, cookies: list[str], *, at_once: int = 64) -> int:
        """Opens one for each cookie. How many were turned away at first: a server that is pressed
        says 503 or closes with 1013, and a page comes again."""
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
        """When each tab was first told this; returns when all were."""
        return [moment for moments in await self._all("told", kind) for moment in moments]

    async def codes(self) -> list[int]:
        """With which code each tab was closed; 0 for those that are open."""
        return [code for codes in await self._all("codes") for code in codes]

    async def forget(self) -> None:
        """What they were told, so that it can be waited for again."""
        await self._all("forget")

    async def leave(self) -> None:
        """Closes all tabs."""
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
    """Says on what was measured, and how much of it the host of a virtual machine kept back."""
    packages = ("quart", "hypercorn", "motor", "beanie")
    named = ", ".join(f"{name} {version(name)}" for name in packages)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {named}"
    )
    before = processors()
    yield
    used, stolen = (b - a for a, b in zip(before, processors(), strict=True))
    print(f"stolen by the host: {stolen / (used + stolen or 1):.0%} of what was wanted")


def processors() -> tuple[int, int]:
    """Ticks that all of them have run for, and that they have waited for the host."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except FileNotFoundError:
        return 0, 0
    user, nice, system, _, _, irq, softirq, steal, *_ = ticks
    return user + nice + system + irq + softirq, steal


def percentile(values: Collection[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
