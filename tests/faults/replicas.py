"""A replica set whose nodes can be killed and frozen, and a proxy before it that can be cut."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorDatabase
from pymongo.errors import PyMongoError

from quartapp.db import mongod_binary
from tests.people import until

ELECTION_MS = 2000
NAME = "faults"
# Each poll connects to a node, which costs as much as several requests.
POLL_SECONDS = 0.1


@dataclass
class Node:
    """One mongod on a loopback port, in its own folder."""

    port: int
    folder: Path
    options: tuple[str, ...] = ()
    process: asyncio.subprocess.Process | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """The address of this node alone."""
        return f"mongodb://{self.host}/?directConnection=true"

    async def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            *(str(mongod_binary.find()), "--dbpath", str(self.folder), "--replSet", NAME),
            *("--bind_ip", "127.0.0.1", "--port", str(self.port), "--nounixsocket"),
            *("--wiredTigerCacheSizeGB", "0.25", "--noscripting", "--quiet"),
            *("--logpath", str(self.folder.with_suffix(".log")), "--logappend"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *(self.options or ("--oplogSize", "32")),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """Kill the process. What the kernel has buffered is still written to the disk."""
        if self.process is not None and self.process.returncode is None:
            self.send(signal.SIGKILL)
            await self.process.wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    async def hello(self) -> dict[str, Any]:
        """Return the answer to `hello`, which is empty while the node does not answer."""
        async with connected(self.uri) as database:
            with suppress(PyMongoError):
                return await database.client.admin.command("hello")
        return {}

    async def answers(self) -> bool:
        return bool(await self.hello())

    async def is_primary(self) -> bool:
        return bool((await self.hello()).get("isWritablePrimary"))


@dataclass
class Replicas:
    """The nodes of one replica set."""

    nodes: list[Node]

    @property
    def uri(self) -> str:
        hosts = ",".join(node.host for node in self.nodes)
        return f"mongodb://{hosts}/?replicaSet={NAME}"

    async def primary(self, *, within: float = 20, but: Node | None = None) -> Node:
        """Wait until a node is primary, and return it."""
        found: list[Node] = []

        async def elected() -> bool:
            candidates = [node for node in self.nodes if node is not but]
            says = await asyncio.gather(*(node.is_primary() for node in candidates))
            found[:] = [node for node, yes in zip(candidates, says, strict=True) if yes]
            return bool(found)

        await until(elected, within=within, every=POLL_SECONDS)
        return found[0]

    async def wait_until_healthy(self) -> None:
        """Wait until one node is primary and the others are secondaries."""

        async def serving() -> bool:
            answers = await asyncio.gather(*(node.hello() for node in self.nodes))
            primaries = sum(bool(each.get("isWritablePrimary")) for each in answers)
            followers = sum(bool(each.get("secondary")) for each in answers)
            return (primaries, followers) == (1, len(self.nodes) - 1)

        await until(serving, within=30, every=POLL_SECONDS)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[AsyncIOMotorDatabase[Any]]:
        """Open the database of the application directly, with majority reads and writes."""
        async with connected(self.uri, w="majority", readConcernLevel="majority") as database:
            yield database


@asynccontextmanager
async def replicas(folder: Path, *options: str, count: int = 3) -> AsyncIterator[Replicas]:
    """Run a replica set that elects a primary within about two seconds."""
    ports = free_ports(count)
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240
    nodes = [Node(port, folder / f"node{i}", options) for i, port in enumerate(ports)]
    async with AsyncExitStack() as stack:
        for node in nodes:
            stack.push_async_callback(node.kill)
            await node.start()
        for node in nodes:
            await until(node.answers, within=20, every=POLL_SECONDS)
        members = [{"_id": i, "host": node.host} for i, node in enumerate(nodes)]
        pace = {
            "electionTimeoutMillis": ELECTION_MS,
            "heartbeatIntervalMillis": 200,
            "heartbeatTimeoutSecs": 2,
        }
        config = {"_id": NAME, "members": members, "settings": pace}
        async with connected(nodes[0].uri) as database:
            await database.client.admin.command("replSetInitiate", config)
        found = Replicas(nodes)
        await found.wait_until_healthy()
        yield found


@asynccontextmanager
async def connected(uri: str, **options: Any) -> AsyncIterator[AsyncIOMotorDatabase[Any]]:
    client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(
        uri,
        tz_aware=True,
        **{
            "serverSelectionTimeoutMS": 500,
            "connectTimeoutMS": 500,
            "socketTimeoutMS": 2000,
            "heartbeatFrequencyMS": 500,
            **options,
        },
    )
    try:
        yield client["quartapp"]
    finally:
        client.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


Mode = Literal["pass", "freeze", "drop"]


@dataclass
class DatabaseProxy:
    """A proxy between one server and the database, which can be cut.

    In the mode "freeze" it accepts connections and data, and forwards the data only when the mode
    is "pass" again, as when packets are lost. In the mode "drop" it resets all connections.
    """

    port: int
    to: int
    mode: Mode = "pass"
    _flows: asyncio.Event = field(default_factory=asyncio.Event)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def uri(self) -> str:
        # Otherwise the driver would connect to the address that the node names, past this proxy.
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    def set(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "freeze":
            self._flows.clear()
        else:
            self._flows.set()
        if mode == "drop":
            for writer in self._open:
                writer.transport.abort()

    @contextmanager
    def cut(self, mode: Mode) -> Iterator[None]:
        self.set(mode)
        try:
            yield
        finally:
            self.set("pass")

    async def __aenter__(self) -> Self:
        self.set("pass")
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.set("drop")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "drop":
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            database, back = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        self._open.add(back)
        try:
            await asyncio.gather(self._pass_on(reader, back), self._pass_on(database, writer))
        finally:
            self._open -= {writer, back}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


def to_node(node: Node) -> DatabaseProxy:
    return DatabaseProxy(port=0, to=node.port)
