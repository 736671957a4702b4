"""The oracle of every test of a revocation: nobody is let in by a request that began after it.

Askers keep asking on every server with one person's cookie while something goes wrong, and each
request is written down: when it began, when it ended, where it was asked and how it was answered.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from tests.people import Person, Server

# An answer that never came: the connection broke, or nothing was said in time.
NO_ANSWER = 0


@dataclass(frozen=True)
class Asked:
    """One request."""

    began: float
    ended: float
    at: str
    status: int


@dataclass
class Load:
    """A few who ask at once, each on a connection of its own for each request."""

    person: Person
    servers: Mapping[str, Server]
    path: str = "/api/me"
    askers: int = 2
    pause: float = 0.02
    asked: list[Asked] = field(default_factory=list)
    acknowledged: float | None = None

    async def __aenter__(self) -> Self:
        # With the cookie as it is now, whatever an answer will make of it.
        self._at = {name: at(server, self.person) for name, server in self.servers.items()}
        self._tasks = [
            asyncio.create_task(self._ask(name, asker))
            for name, asker in self._at.items()
            for _ in range(self.askers)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for asker in self._at.values():
            await asker.client.aclose()

    def revoked(self) -> None:
        """Call it when the answer that says so is there."""
        self.acknowledged = time.monotonic()

    async def more(self, count: int, *, status: int | None = None, within: float = 30) -> None:
        """Waits until each server was asked that often again, and has answered so if given."""
        since = time.monotonic()
        async with asyncio.timeout(within):
            while min(self._answered(name, since, status) for name in self.servers) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def burst(self, at: str, count: int) -> list[asyncio.Task[None]]:
        """So many more who ask once there, all at once."""
        return [asyncio.create_task(self._ask_once(at, self._at[at])) for _ in range(count)]

    def statuses(self, *, at: str | None = None, since: float = 0) -> Counter[int]:
        return Counter(
            each.status for each in self.asked if each.began > since and at in (None, each.at)
        )

    def longest(self) -> float:
        """The seconds for which the most patient asker waited for an answer."""
        return max(each.ended - each.began for each in self.asked)

    def let_in(self) -> list[Asked]:
        """What must be empty: those accepted that began after the revocation was acknowledged."""
        assert self.acknowledged is not None, "nothing was revoked"
        before = [each for each in self.asked if each.began <= self.acknowledged]
        after = [each for each in self.asked if each.began > self.acknowledged]
        # Else the oracle would be silent because nobody asked, or because nobody was ever let in.
        for name in self.servers:
            assert any(each.at == name and accepted(each) for each in before), f"{name}: never in"
            assert any(each.at == name for each in after), f"{name}: not asked afterwards"
        return [each for each in after if accepted(each)]

    def _answered(self, name: str, since: float, status: int | None) -> int:
        return sum(
            each.at == name and each.began > since and status in (None, each.status)
            for each in self.asked
        )

    async def _ask(self, name: str, asker: Person) -> None:
        while True:
            await self._ask_once(name, asker)
            await asyncio.sleep(self.pause)

    async def _ask_once(self, name: str, asker: Person) -> None:
        began = time.monotonic()
        try:
            status = await asker.status(self.path)
        except (OSError, IndexError, TimeoutError):
            status = NO_ANSWER
        self.asked.append(Asked(began, time.monotonic(), name, status))


def accepted(asked: Asked) -> bool:
    return 200 <= asked.status < 300


def at(server: Server, person: Person) -> Person:
    """The same person with the same cookie, at another server of the same database."""
    elsewhere = Person(server.url, person.username, person.password)
    for name, value in person.client.cookies.items():
        elsewhere.client.cookies.set(name, value)
    return elsewhere
