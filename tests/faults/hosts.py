"""Servers that share a database, which stands for several hosts, and the people on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.conftest import PASSWORD, serving
from tests.faults.oracle import at
from tests.faults.replicas import Replicas, replicas
from tests.people import First, Person, Server, command

# A cookie of one host must be good on the others.
KEY = "a key that all the hosts have, of more than 32 bytes"


@dataclass
class Hosts:
    """Starts servers on the way, and ends them and the people's browsers in the end."""

    folder: Path
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def serve(self, name: str, uri: str, *, first: First | None = None, **env: str) -> Server:
        """A server of one worker with its own way to the database."""
        # Nothing is put right by a sweep, unless a test wants one.
        env = {"LIVE_SWEEP_SECONDS": "3600", "LIVE_PING_SECONDS": "60"} | env
        return await self.stack.enter_async_context(
            serving(
                self.folder / name,
                workers=1,
                first=first,
                MONGODB_URI=uri,
                SECRET_KEY=KEY,
                **env,
            )
        )

    async def administrator(self, server: Server, uri: str, name: str = "root") -> Person:
        """Made beside the server, as an operator does, and signed in."""
        ran = await command(
            *("user", "create", name, f"{name}@example.org", "--role", "admin"),
            data=self.folder / "operator",
            stdin=f"{PASSWORD}\n".encode(),
            MONGODB_URI=uri,
            SECRET_KEY=KEY,
            BCRYPT_COST="4",
        )
        assert ran.status == 0, ran.err
        person = await self.visitor(server, name)
        await person.sign_in()
        return person

    async def member(self, server: Server, name: str) -> Person:
        """Somebody who registers, and is signed in."""
        person = await self.visitor(server, name)
        await person.register()
        return person

    async def visitor(self, server: Server, name: str) -> Person:
        person = await self.stack.enter_async_context(Person(server.url, name, PASSWORD))
        # Long enough to see how long an answer takes in the worst case.
        person.client.timeout = 60
        return person

    async def moved(self, person: Person, server: Server) -> Person:
        """The same browser, with the same cookie, at another server."""
        other = await self.stack.enter_async_context(at(server, person))
        other.client.timeout = 60
        return other


@dataclass
class Scene:
    """A replica set, one server on all of it, and an administrator."""

    nodes: Replicas
    hosts: Hosts
    server: Server
    root: Person
    numbers: count[int] = field(default_factory=count)

    async def member(self) -> Person:
        return await self.hosts.member(self.server, f"member-{next(self.numbers)}")


@asynccontextmanager
async def scene_of(folder: Path, *, nodes: int = 3) -> AsyncIterator[Scene]:
    async with replicas(folder / "nodes", count=nodes) as them, hosts(folder) as servers:
        server = await servers.serve("server", them.uri)
        root = await servers.administrator(server, them.uri)
        yield Scene(them, servers, server, root)


@asynccontextmanager
async def hosts(folder: Path) -> AsyncIterator[Hosts]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240
    async with AsyncExitStack() as stack:
        yield Hosts(folder, stack)
