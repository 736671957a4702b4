"""Several hosts: servers that share a database, and users who are signed in to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.conftest import PASSWORD, serving
from tests.faults.oracle import at
from tests.faults.replicas import Replicas, replicas
from tests.people import BeforeStart, Person, Server, command

# Every host must accept the cookies of the others.
KEY = "a key that all the hosts have, of more than 32 bytes"


@dataclass
class Hosts:
    """Starts servers and signs users in. All are stopped when the context ends."""

    folder: Path
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    numbers: count[int] = field(default_factory=count)

    async def serve(
        self,
        name: str,
        uri: str,
        workers: int = 1,
        /,
        *,
        before_start: BeforeStart | None = None,
        **env: str,
    ) -> Server:
        """Start a server that reaches the database at this address."""
        # The periodic check is an hour away, unless a test asks for it.
        env = {"LIVE_SWEEP_SECONDS": "3600", "LIVE_PING_SECONDS": "25"} | env
        return await self.stack.enter_async_context(
            serving(
                self.folder / name,
                workers=workers,
                before_start=before_start,
                MONGODB_URI=uri,
                SECRET_KEY=KEY,
                **env,
            )
        )

    async def administrator(self, server: Server, uri: str, name: str = "root") -> Person:
        """Create an administrator with the command line, and return them signed in."""
        ran = await command(
            *("user", "create", name, f"{name}@example.org", "--role", "admin"),
            data=self.folder / "operator",
            stdin=f"{PASSWORD}\n".encode(),
            MONGODB_URI=uri,
            SECRET_KEY=KEY,
        )
        assert ran.status == 0, ran.err
        person = await self.visitor(server, name)
        await person.sign_in()
        return person

    async def member(self, server: Server) -> Person:
        """Register a user with a new name, and return them signed in."""
        person = await self.visitor(server, f"member-{next(self.numbers)}")
        await person.register()
        return person

    async def visitor(self, server: Server, name: str) -> Person:
        person = await self.stack.enter_async_context(Person(server.url, name, PASSWORD))
        # Longer than the slowest answer, whose time tests measure.
        person.client.timeout = 60
        return person

    async def moved(self, person: Person, server: Server) -> Person:
        """Return the same user with the same cookie, at another server."""
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

    async def member(self) -> Person:
        return await self.hosts.member(self.server)


@asynccontextmanager
async def scene_of(folder: Path, *, nodes: int = 3) -> AsyncIterator[Scene]:
    async with replicas(folder / "nodes", count=nodes) as replica_set, hosts(folder) as servers:
        server = await servers.serve("server", replica_set.uri)
        root = await servers.administrator(server, replica_set.uri)
        yield Scene(replica_set, servers, server, root)


@asynccontextmanager
async def hosts(folder: Path) -> AsyncIterator[Hosts]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240
    async with AsyncExitStack() as stack:
        yield Hosts(folder, stack)
