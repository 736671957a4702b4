"""Workers and clients that leave, each in its way, and what the log says of it: nothing bad."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from tests.conftest import PASSWORD, serving
from tests.faults.oracle import Load, at
from tests.flows.conftest import assert_unsurprised
from tests.people import SECONDS, Person, Server, Tab, http_client, until

# LIMIT_SIGN_IN, as it is unless it is set.
FREE = 5


async def test_a_stopping_server_sends_1012_and_finishes_begun_requests(
    tmp_path: Path,
) -> None:
    async with (
        serving(tmp_path / "data") as server,
        Person(server.url, "ada", PASSWORD) as ada,
    ):
        await ada.register()
        async with ada.tabs("0", "0", "1", "1") as tabs, begun(ada, 8) as requests:
            server.process.send_signal(signal.SIGTERM)
            assert [await tab.closed() for tab in tabs] == [1012] * len(tabs)
            assert [await tab.heard("session.ended") for tab in tabs] == [[]] * len(tabs)
            await until(lambda: takes_no_more(ada))
            answers = await asyncio.gather(*(request.finish() for request in requests))
            assert answers == [303] * len(requests)
            assert (await server.process.end(within=20)).status == 0
        assert_unsurprised(server)


@dataclass
class Begun:
    """A request whose head is with a worker, and waits there for the rest."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes

    async def finish(self) -> int:
        """Its status, once the whole answer was read."""
        async with asyncio.timeout(SECONDS):
            self.writer.write(self.rest)
            head, _, body = (await self.reader.read()).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length
        assert len(body) == int(length[1])
        return int(head.split()[1])


@asynccontextmanager
async def begun(person: Person, count: int) -> AsyncIterator[list[Begun]]:
    """So many forms that are half sent. A worker asks for the rest of each that it has begun."""
    host, path = urlsplit(person.url).netloc, "/account/notices/read"
    body = urlencode({"csrf_token": await person.csrf_token("/account/notices")}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: {person.url}\r\n"
        f"Cookie: {person.cookies()}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    async with AsyncExitStack() as stack:
        requests = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(*host.split(":"))
            stack.callback(writer.close)
            writer.write(head.encode())
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
            requests.append(Begun(reader, writer, body))
        yield requests


async def takes_no_more(person: Person) -> bool:
    try:
        await person.status("/livez")
    except ConnectionRefusedError:
        return True
    except (ConnectionError, IndexError):
        pass
    return False


@pytest.mark.timeout(120)
async def test_killing_a_worker_closes_only_its_sockets_and_it_is_replaced(
    tmp_path: Path,
) -> None:
    async with (
        # The ones that are kept say nothing while the other is awaited: a loaded machine is slow.
        serving(tmp_path / "data", LIVE_PING_SECONDS="20") as server,
        Person(server.url, "ada", PASSWORD) as ada,
    ):
        await ada.register()
        for killed, other in permutations(("0", "1")):
            async with Person(server.url, f"bob-{killed}", PASSWORD) as bob:
                await bob.register()
                async with bob.another_device() as phone:
                    await phone.sign_in()
                # By connections of its own, for those to the one that is killed are gone with it.
                async with at(server, phone) as phone:
                    await kill_one(server, killed, other, ada=ada, bob=bob, phone=phone)


async def kill_one(
    server: Server, killed: str, other: str, *, ada: Person, bob: Person, phone: Person
) -> None:
    """While bob, who is signed in with a phone too, asks and asks, and is signed out by it."""
    async with (
        bob.tabs(killed) as (lost,),
        bob.tabs(other) as (told,),
        ada.tabs(other, other) as kept,
        Load(bob, {"here": server}) as load,
    ):
        await load.more(20, status=200)
        process = server.worker(killed)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(AssertionError, match="without a close frame"):
            await lost.closed()
        assert (await phone.post("/account/sessions/end-others")).status_code == 303
        load.revoked()
        assert await told.closed() == 4401
        assert all([await tab.is_open() for tab in kept])
        await until(lambda: is_greeted_by(ada, killed))
        assert server.worker(killed) != process
        await load.more(20, status=401)
        assert load.let_in() == []
        assert all([await tab.is_open() for tab in kept])
    # The new one hears what the database says, as the old one did.
    async with phone.tabs(killed) as (again,):
        assert (await phone.post("/logout")).status_code == 303
        assert await again.closed() == 4401


async def test_a_rolling_restart_fails_no_request_and_keeps_rate_limits(
    tmp_path: Path,
) -> None:
    async with (
        serving(tmp_path / "data", LIVE_PING_SECONDS="4") as server,
        Person(server.url, "ada", PASSWORD) as ada,
        Person(server.url, "ada", "not her password") as eve,
    ):
        await ada.register()
        assert await guesses(eve) == [422] * FREE
        old = {server.worker("0"), server.worker("1")}
        answers: Counter[int] = Counter()
        over = asyncio.Event()

        async def ask() -> None:
            """In turn on a connection that is kept, and on one of its own."""
            async with http_client(server.url, cookies=ada.client.cookies) as kept:
                while not over.is_set():
                    answers[(await kept.get("/api/me")).status_code] += 1
                    answers[await ada.status("/account")] += 1

        async def come_back(tab: Tab, places: AsyncExitStack) -> Tab:
            """As a page does: when it was told to."""
            assert await tab.closed(within=60) == 1012
            told = re.fullmatch(r"come back in (\d\.\d) s", tab.socket.close_reason or "")
            assert told
            await asyncio.sleep(float(told[1]))
            return await places.enter_async_context(ada.tab())

        async with (
            AsyncExitStack() as places,
            ada.tabs("0", "0", "0", "0", "1", "1") as tabs,
            asyncio.TaskGroup() as asking,
        ):
            for _ in range(4):
                asking.create_task(ask())
            server.process.send_signal(signal.SIGHUP)
            back = await asyncio.gather(*(come_back(tab, places) for tab in tabs))
            await until(lambda: both_are_new(server, old), within=60)
            await until(lambda: renewed(server), within=60)
            over.set()
            assert [await tab.is_open() for tab in back] == [True] * len(back)
        assert set(answers) == {200}, answers
        assert answers[200] > 8
        # Of each one that is judged, the next must be waited for: for twice as long each time.
        assert 429 in await guesses(eve)
        async with ada.tabs() as again:
            assert (await ada.post("/logout")).status_code == 303
            assert [await tab.closed() for tab in again] == [4401, 4401]
        assert_unsurprised(server)


async def renewed(server: Server) -> bool:
    return "renewal_done" in server.said()


async def guesses(person: Person) -> list[int]:
    """As many as are free to who has made none, or until one is refused."""
    answers: list[int] = []
    while len(answers) < FREE and 429 not in answers:
        fields = {"login": person.username, "password": person.password}
        answers.append((await person.post("/login", page="/login", **fields)).status_code)
    return answers


async def both_are_new(server: Server, old: set[int]) -> bool:
    """Whether the old ones are gone, and there are two."""
    new = {server.worker("0"), server.worker("1")}
    return not any(is_alive(pid) for pid in old) and not new & old


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def is_greeted_by(person: Person, worker: str) -> bool:
    async with person.tab() as tab:
        return tab.hello["worker"] == worker


async def vanish(tab: Tab) -> None:
    tab.socket.transport.abort()


async def say_goodbye(tab: Tab) -> None:
    await tab.socket.close()


async def hang_up_without_waiting(tab: Tab) -> None:
    await tab.socket.send("{")
    tab.socket.transport.abort()


async def say_too_much(tab: Tab) -> None:
    await tab.socket.send("x" * 100_000)
    await tab.closed()


@pytest.mark.parametrize("leave", [vanish, say_goodbye, hang_up_without_waiting, say_too_much])
async def test_no_way_of_disconnecting_disturbs_other_sockets(
    server: Server, ada: Person, leave
) -> None:
    """The fixture `server` checks the log once more, at the end of the module."""
    before = len(server.said())
    async with ada.tabs() as kept:
        for _ in range(5):
            async with ada.tabs() as tabs:
                await asyncio.gather(*(leave(tab) for tab in tabs))
        assert all([await tab.is_open() for tab in kept])
        assert_unsurprised(server, since=before)
