"""Enforcement: requests go to both workers while their session is being ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from tests.conftest import long
from tests.people import Person, Server, flood_change_stream, until

AT_ONCE = 6
BEFORE, AFTER = 24, 36


@dataclass
class RequestLoops:
    """Sends requests with one cookie, and records when each began and its status."""

    person: Person
    sent: list[tuple[float, int]] = field(default_factory=list)
    stopped: bool = False

    async def run(self) -> None:
        while not self.stopped:
            began = time.monotonic()
            self.sent.append((began, await self.person.status("/api/me")))

    async def until(self, count: int, since: float = 0) -> None:
        async def has_sent() -> bool:
            return sum(began > since for began, _ in self.sent) >= count

        await until(has_sent)


async def sign_out(ada: Person, phone: Person, root: Person) -> int:
    # From another browser with the same cookie, since the answer clears the cookie.
    async with ada.another_device() as copy:
        copy.client.cookies = ada.client.cookies
        return (await copy.post("/logout")).status_code


async def end_others(ada: Person, phone: Person, root: Person) -> int:
    return (await phone.post("/account/sessions/end-others")).status_code


async def end_sessions(ada: Person, phone: Person, root: Person) -> int:
    return (await root.post(f"/admin/users/{ada.username}/sessions/end")).status_code


async def revoke(ada: Person, phone: Person, root: Person) -> int:
    return (await root.post(f"/admin/users/{ada.username}/grants/member/revoke")).status_code


async def disable(ada: Person, phone: Person, root: Person) -> int:
    return (await root.post(f"/admin/users/{ada.username}/disable")).status_code


@pytest.mark.parametrize(
    "end_session",
    [sign_out, revoke, *(long(act) for act in (end_others, end_sessions, disable))],
)
@pytest.mark.parametrize("attempt", [1, *(long(n) for n in range(2, 6))])
async def test_requests_are_refused_once_the_end_is_acknowledged(
    server: Server,
    root: Person,
    ada: Person,
    bob: Person,
    end_session: Callable[[Person, Person, Person], Awaitable[int]],
    attempt: int,
) -> None:
    loops = RequestLoops(ada)
    cookies = ada.cookies()
    async with ada.another_device() as phone, asyncio.TaskGroup() as group:
        await phone.sign_in()
        for _ in range(AT_ONCE):
            group.create_task(loops.run())
        await loops.until(BEFORE)
        # Otherwise workers would hear of the end before it is answered, also without waiting.
        await flood_change_stream(server, bob)
        assert await end_session(ada, phone, root) == 303
        answered = time.monotonic()
        await loops.until(AFTER, since=answered)
        loops.stopped = True
    assert ada.cookies() == cookies
    before = [status for began, status in loops.sent if began <= answered]
    after = [status for began, status in loops.sent if began > answered]
    assert 200 in before
    assert set(after) == {401}, f"attempt {attempt}: {after.count(200)} of {len(after)} accepted"
