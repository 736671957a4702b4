"""Workers and clients that leave, each in its way, and what the log says of it: nothing bad."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.conftest import PASSWORD, serving
from tests.flows.conftest import assert_unsurprised
from tests.people import Person, Server, Tab, until


async def test_a_server_that_stops_tells_every_tab_to_come_back(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "data") as server,
        Person(server.url, "ada", PASSWORD) as ada,
    ):
        await ada.register()
        async with ada.tabs("0", "0", "1", "1") as tabs:
            server.process.send_signal(signal.SIGTERM)
            assert [await tab.closed() for tab in tabs] == [1012] * len(tabs)
            assert [await tab.heard("session.ended") for tab in tabs] == [[]] * len(tabs)
            async with asyncio.timeout(20):
                assert await server.process.wait() == 0
        assert_unsurprised(server)


async def test_a_worker_that_is_killed_takes_only_its_own_sockets_along_and_comes_back(
    tmp_path: Path,
) -> None:
    async with (
        # The ones that are kept say nothing while the other is awaited: a loaded machine is slow.
        serving(tmp_path / "data", LIVE_PING_SECONDS="8") as server,
        Person(server.url, "ada", PASSWORD) as ada,
    ):
        await ada.register()
        async with ada.tabs("0") as (lost,), ada.tabs("1", "1", "1") as kept:
            killed = server.worker("0")
            os.kill(killed, signal.SIGKILL)
            with pytest.raises(AssertionError, match="without a close frame"):
                await lost.closed()
            assert all([await tab.is_open() for tab in kept])
            await until(lambda: is_greeted_by(ada, "0"), within=15)
            assert server.worker("0") != killed
            # The new one hears what the database says, as the old one did.
            async with ada.tabs("0") as (again,):
                assert (await ada.post("/account/sessions/end-others")).status_code == 303
                assert (await ada.post("/logout")).status_code == 303
                for tab in [again, *kept]:
                    assert await tab.closed() == 4401


async def test_a_renewal_of_the_workers_fails_no_request_and_sends_every_tab_on(
    tmp_path: Path,
) -> None:
    async with (
        serving(tmp_path / "data", LIVE_PING_SECONDS="4") as server,
        Person(server.url, "ada", PASSWORD) as ada,
    ):
        await ada.register()
        old = {server.worker("0"), server.worker("1")}
        answers: Counter[int] = Counter()
        over = asyncio.Event()

        async def ask() -> None:
            """In turn on a connection that is kept, and on one of its own."""
            async with httpx.AsyncClient(base_url=server.url, cookies=ada.client.cookies) as kept:
                while not over.is_set():
                    answers[(await kept.get("/api/me")).status_code] += 1
                    answers[await ada.status("/account")] += 1

        async with ada.tabs("0", "0", "1", "1") as tabs, asyncio.TaskGroup() as asking:
            for _ in range(4):
                asking.create_task(ask())
            server.process.send_signal(signal.SIGHUP)
            closings = [asyncio.create_task(tab.closed(within=30)) for tab in tabs]
            assert await asyncio.gather(*closings) == [1012] * len(tabs)
            for tab in tabs:
                assert re.fullmatch(r"come back in \d\.\d s", tab.socket.close_reason or "")
            await until(lambda: both_are_new(server, old), within=30)
            over.set()
        assert set(answers) == {200}, answers
        assert answers[200] > 8
        async with ada.tabs() as again:
            assert (await ada.post("/logout")).status_code == 303
            assert [await tab.closed() for tab in again] == [4401, 4401]
        assert_unsurprised(server)


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
async def test_clients_leave_as_they_like(server: Server, ada: Person, leave) -> None:
    """Nothing is said of them but that they came: see the end of the fixture `server`."""
    async with ada.tabs() as kept:
        for _ in range(5):
            async with ada.tabs() as tabs:
                await asyncio.gather(*(leave(tab) for tab in tabs))
        assert all([await tab.is_open() for tab in kept])
        assert_unsurprised(server)
