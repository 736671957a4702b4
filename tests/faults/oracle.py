"""The check of every test of a revocation: no request that begins after it is accepted.

A load of requests with one user's cookie goes to every server while a fault is injected. Each
request is recorded: when it began and ended, which server it went to, and its status.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from tests.people import Person, Server, until

# The status of a request without an answer: the connection broke, or the time was over.
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
    """Requests that several askers send at once, each on a new connection."""

    person: Person
    servers: Mapping[str, Server]
    path: str = "/api/me"
    askers: int = 2
    pause: float = 0.02
    asked: list[Asked] = field(default_factory=list)
    acknowledged: float | None = None

    async def __aenter__(self) -> Self:
        # An answer may clear the cookie, so each asker has a copy of it.
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
        """Call this when the revocation has been answered."""
        self.acknowledged = time.monotonic()

    async def more(
        self,
        count: int,
        *,
        status: int | None = None,
        since: float | None = None,
        within: float = 30,
    ) -> None:
        """Wait until each server has answered that many requests, with this status if given.

        Only requests that began after `since` count, by default those that begin from now on.
        """
        began = time.monotonic() if since is None else since

        async def answered() -> bool:
            return min(self._answered(name, began, status) for name in self.servers) >= count

        await until(answered, within=within)

    def burst(self, at: str, count: int) -> list[asyncio.Task[None]]:
        """Send that many more requests to one server at once."""
        return [asyncio.create_task(self._ask_once(at, self._at[at])) for _ in range(count)]

    def statuses(self, *, at: str | None = None, since: float = 0) -> Counter[int]:
        return Counter(
            each.status for each in self.asked if each.began > since and at in (None, each.at)
        )

    def longest(self) -> float:
        """Return how long the slowest answer took, in seconds."""
        return max(each.ended - each.began for each in self.asked)

    def accepted_after_revocation(self) -> list[Asked]:
        """Return the accepted requests that began after the revocation, which must be none."""
        assert self.acknowledged is not None, "nothing was revoked"
        before = [each for each in self.asked if each.began <= self.acknowledged]
        after = [each for each in self.asked if each.began > self.acknowledged]
        # Otherwise the check would pass without requests, or with a cookie that was never accepted.
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
    """Return the same user with the same cookies, at another server of the same database."""
    elsewhere = Person(server.url, person.username, person.password)
    for name, value in person.client.cookies.items():
        elsewhere.client.cookies.set(name, value)
    return elsewhere
