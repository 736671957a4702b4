"""Stops and restarts of workers and disconnecting clients: no request fails, no error is logged."""

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
from tests.integration.flows.conftest import assert_no_errors_logged
from tests.people import SECONDS, Person, Server, Tab, http_client, until

# The failed sign-ins that the default of LIMIT_SIGN_IN allows without a wait.
FREE_ATTEMPTS = 5


async def test_a_stopping_server_sends_1012_and_finishes_begun_requests(
    tmp_path: Path,
) -> None:
    async with (
        serving(tmp_path / "data") as server,
        Person(server.url, "ada", PASSWORD) as ada,
    ):
        await ada.register()
        async with ada.tabs("0", "0", "1", "1") as tabs, half_sent_requests(ada, 8) as requests:
            server.process.send_signal(signal.SIGTERM)
            assert [await tab.closed() for tab in tabs] == [1012] * len(tabs)
            assert [await tab.received("session.ended") for tab in tabs] == [[]] * len(tabs)
            await until(lambda: refuses_connections(ada))
            answers = await asyncio.gather(*(request.finish() for request in requests))
            assert answers == [303] * len(requests)
            assert (await server.process.end(within=20)).status == 0
        assert_no_errors_logged(server)


@dataclass
class HalfSentRequest:
    """A request whose head a worker has received, and whose body has not been sent."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes

    async def finish(self) -> int:
        """Send the body, read the whole answer, and return its status."""
        async with asyncio.timeout(SECONDS):
            self.writer.write(self.rest)
            head, _, body = (await self.reader.read()).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length
        assert len(body) == int(length[1])
        return int(head.split()[1])


@asynccontextmanager
async def half_sent_requests(person: Person, count: int) -> AsyncIterator[list[HalfSentRequest]]:
    """Send the heads of that many forms, each answered with `100 Continue` by a worker."""
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
            requests.append(HalfSentRequest(reader, writer, body))
        yield requests


async def refuses_connections(person: Person) -> bool:
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
        # The sockets that stay open are not read for a while, so the ping interval is long.
        serving(tmp_path / "data", LIVE_PING_SECONDS="20") as server,
        Person(server.url, "ada", PASSWORD) as ada,
    ):
        await ada.register()
        for killed, other in permutations(("0", "1")):
            async with Person(server.url, f"bob-{killed}", PASSWORD) as bob:
                await bob.register()
                async with bob.another_device() as phone:
                    await phone.sign_in()
                # It needs new connections: those to the killed worker are closed.
                async with at(server, phone) as phone:
                    await kill_and_check(server, killed, other, ada=ada, bob=bob, phone=phone)


async def kill_and_check(
    server: Server, killed: str, other: str, *, ada: Person, bob: Person, phone: Person
) -> None:
    """Kill one worker while requests of bob are running, and end his session from his phone."""
    async with (
        bob.tabs(killed) as (killed_tab,),
        bob.tabs(other) as (notified_tab,),
        ada.tabs(other, other) as kept_tabs,
        Load(bob, {"here": server}) as load,
    ):
        await load.more(20, status=200)
        process = server.worker(killed)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(AssertionError, match="without a close frame"):
            await killed_tab.closed()
        assert (await phone.post("/account/sessions/end-others")).status_code == 303
        load.revoked()
        assert await notified_tab.closed() == 4401
        assert all([await tab.is_open() for tab in kept_tabs])
        await until(lambda: reaches_worker(ada, killed))
        assert server.worker(killed) != process
        await load.more(20, status=401)
        assert load.accepted_after_revocation() == []
        assert all([await tab.is_open() for tab in kept_tabs])
    # The new worker follows the change stream, as the old one did.
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
        assert await failed_sign_ins(eve) == [422] * FREE_ATTEMPTS
        old = {server.worker("0"), server.worker("1")}
        answers: Counter[int] = Counter()
        over = asyncio.Event()

        async def ask() -> None:
            """Send requests on a persistent connection and on new ones, in turn."""
            async with http_client(server.url, cookies=ada.client.cookies) as client:
                while not over.is_set():
                    answers[(await client.get("/api/me")).status_code] += 1
                    answers[await ada.status("/account")] += 1

        async def reconnect(tab: Tab, sockets: AsyncExitStack) -> Tab:
            """Reconnect after the time that the server requested, as a page does."""
            assert await tab.closed(within=60) == 1012
            requested = re.fullmatch(r"come back in (\d\.\d) s", tab.socket.close_reason or "")
            assert requested
            await asyncio.sleep(float(requested[1]))
            return await sockets.enter_async_context(ada.tab())

        async with (
            AsyncExitStack() as sockets,
            ada.tabs("0", "0", "0", "0", "1", "1") as tabs,
            asyncio.TaskGroup() as asking,
        ):
            for _ in range(4):
                asking.create_task(ask())
            server.process.send_signal(signal.SIGHUP)
            back = await asyncio.gather(*(reconnect(tab, sockets) for tab in tabs))
            await until(lambda: both_are_replaced(server, old), within=60)
            await until(lambda: has_restarted(server), within=60)
            over.set()
            assert [await tab.is_open() for tab in back] == [True] * len(back)
        assert set(answers) == {200}, answers
        assert answers[200] > 8
        # The failed sign-ins from before the restart still count, so a wait is imposed.
        assert 429 in await failed_sign_ins(eve)
        async with ada.tabs() as again:
            assert (await ada.post("/logout")).status_code == 303
            assert [await tab.closed() for tab in again] == [4401, 4401]
        assert_no_errors_logged(server)


async def has_restarted(server: Server) -> bool:
    return "renewal_done" in server.stderr()


async def failed_sign_ins(person: Person) -> list[int]:
    """Fail to sign in until the free attempts are used or a 429 comes, and return the statuses."""
    answers: list[int] = []
    while len(answers) < FREE_ATTEMPTS and 429 not in answers:
        fields = {"login": person.username, "password": person.password}
        answers.append((await person.post("/login", page="/login", **fields)).status_code)
    return answers


async def both_are_replaced(server: Server, old: set[int]) -> bool:
    """Return whether the old processes have ended and two new workers are running."""
    new = {server.worker("0"), server.worker("1")}
    return not any(is_alive(pid) for pid in old) and not new & old


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def reaches_worker(person: Person, worker: str) -> bool:
    async with person.tab() as tab:
        return tab.hello["worker"] == worker


async def abort(tab: Tab) -> None:
    tab.socket.transport.abort()


async def close_normally(tab: Tab) -> None:
    await tab.socket.close()


async def send_and_abort(tab: Tab) -> None:
    await tab.socket.send("{")
    tab.socket.transport.abort()


async def send_too_much(tab: Tab) -> None:
    await tab.socket.send("x" * 100_000)
    await tab.closed()


@pytest.mark.parametrize("disconnect", [abort, close_normally, send_and_abort, send_too_much])
async def test_no_way_of_disconnecting_disturbs_other_sockets(
    server: Server, ada: Person, disconnect
) -> None:
    """The log is checked here, and again by the fixture `server` at the end of the module."""
    before = len(server.stderr())
    async with ada.tabs() as kept_tabs:
        for _ in range(5):
            async with ada.tabs() as tabs:
                await asyncio.gather(*(disconnect(tab) for tab in tabs))
        assert all([await tab.is_open() for tab in kept_tabs])
        assert_no_errors_logged(server, since=before)
