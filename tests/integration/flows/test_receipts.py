"""Receipts: how many tabs acknowledged a revocation, for the administrator and the audit log."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack

from tests.networks import network
from tests.people import Person, Server, Tab, until

ADMIN = "/admin/users/{}"


class UnresponsiveTab(Tab):
    """A tab with an open socket that acknowledges nothing, as when its script hangs."""

    async def send(self, **message: object) -> None:
        if message["type"] != "ack":
            await super().send(**message)


async def flash_text(person: Person) -> str:
    """Return the text of the page that follows the last POST, without markup."""
    page = (await person.get("/admin/users")).text
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


async def receipts(server: Server, username: str, verb: str) -> list[dict[str, object]]:
    return (await server.last_event(username, verb))["receipts"]


async def test_the_response_counts_acknowledged_tabs_workers_and_delay(
    server: Server, root: Person, ada: Person
) -> None:
    async with ada.tabs("0", "0", "1") as tabs:
        listening = [asyncio.create_task(tab.closed()) for tab in tabs]
        await root.post(ADMIN.format(ada.username) + "/disable")
        text = await flash_text(root)
        assert await asyncio.gather(*listening) == [4401] * 3
    assert re.search(r"3 tabs on 2 workers acknowledged, slowest \d+ ms\.", text), text
    kept = await receipts(server, ada.username, "user.disabled")
    assert sorted((r["tabs"], r["acked"]) for r in kept) == [(1, 1), (2, 2)]
    assert "3 tabs on 2 workers acknowledged" in (await root.get("/admin/events")).text


async def test_a_tab_that_never_acknowledges_is_counted_and_closed(
    server: Server, root: Person, ada: Person
) -> None:
    async with ada.tabs("0", "1") as tabs:
        frozen = UnresponsiveTab(tabs[1].socket)
        listening = [asyncio.create_task(tab.closed()) for tab in (tabs[0], frozen)]
        await root.post(ADMIN.format(ada.username) + "/sessions/end")
        text = await flash_text(root)
        assert await asyncio.gather(*listening) == [4401, 4401]
    assert re.search(
        r"1 tab on 1 worker acknowledged, slowest \d+ ms; 1 not acknowledged (yet|in time)", text
    ), text
    await wait_for_receipts(server, ada, "sessions.ended", acked=1, missed=1)
    audit = (await root.get("/admin/events")).text
    assert "; 1 not acknowledged in time, refused at its next request.<" in audit
    assert await ada.is_refused()


async def test_receipts_wait_for_slow_networks_and_time_out_on_broken_ones(
    server: Server, root: Person, ada: Person
) -> None:
    """The response does not wait for slow tabs, and counts none as missed before the time is up."""
    async with AsyncExitStack() as stack:
        tabs = []
        for delay in (0.0, 0.16, 0.4, 0.7):
            slow = await stack.enter_async_context(network(server.url, delay=delay))
            tabs.append(await stack.enter_async_context(through(slow.url, ada).tab()))
        broken = await stack.enter_async_context(network(server.url))
        lost = await stack.enter_async_context(through(broken.url, ada).tab())
        broken.broken = True
        listening = [asyncio.create_task(tab.closed()) for tab in tabs]
        await root.post(ADMIN.format(ada.username) + "/disable")
        text = await flash_text(root)
        assert re.search(r"\d tabs? on . workers? acknowledged, .*not acknowledged yet\.", text), (
            text
        )
        assert "in time" not in text
        assert await asyncio.gather(*listening) == [4401] * 4
        await wait_for_receipts(server, ada, "user.disabled", acked=4, missed=1)
        audit = (await root.get("/admin/events")).text
        assert re.search(
            r"4 tabs on . workers? acknowledged, [^;]*; 1 not acknowledged in t", audit
        )
        lost.socket.transport.abort()


async def wait_for_receipts(
    server: Server, person: Person, verb: str, *, acked: int, missed: int
) -> None:
    """Wait until the receipts of the event add up to these counts, which they never exceed."""

    async def is_final() -> bool:
        kept = await receipts(server, person.username, verb)
        assert total(kept, "acked") <= acked, kept
        assert total(kept, "missed") <= missed, kept
        return total(kept, "acked") + total(kept, "missed") == acked + missed

    await until(is_final)


def total(kept: list[dict[str, object]], field: str) -> int:
    return sum(int(str(each[field])) for each in kept)


def through(url: str, person: Person) -> Person:
    """Return the same user and cookies, at another address of the server."""
    other = Person(url, person.username, person.password)
    other.client.cookies.update(person.client.cookies)
    return other


async def test_without_open_tabs_there_is_no_receipt(
    server: Server, root: Person, ada: Person
) -> None:
    await root.post(ADMIN.format(ada.username) + "/sessions/end")
    text = await flash_text(root)
    assert f"Sessions of {ada.username} ended: 1." in text
    assert "tab" not in text.split("ended: 1.")[1][:40]
    assert await receipts(server, ada.username, "sessions.ended") == []


async def test_a_command_prints_the_receipt(server: Server, ada: Person) -> None:
    async with ada.tabs() as tabs:
        listening = [asyncio.create_task(tab.closed()) for tab in tabs]
        text = await server.run("user", "disable", ada.username)
        assert await asyncio.gather(*listening) == [4401, 4401]
    assert re.search(r"is disabled\. 2 tabs on 2 workers acknowledged, slowest \d+ ms\.", text), (
        text
    )
    assert await ada.status("/api/me") == 401


async def test_tabs_that_disconnect_meanwhile_are_counted_at_most_once(
    server: Server, root: Person, ada: Person
) -> None:
    async with AsyncExitStack() as stack:
        tabs = [await stack.enter_async_context(ada.tab()) for _ in range(6)]
        listening = [asyncio.create_task(tab.closed()) for tab in tabs]
        leaving = [tab.socket.close() for tab in tabs[:2]]
        await asyncio.gather(root.post(ADMIN.format(ada.username) + "/sessions/end"), *leaving)
        codes = await asyncio.gather(*listening, return_exceptions=True)
    assert codes[2:] == [4401] * 4
    kept = await receipts(server, ada.username, "sessions.ended")
    assert total(kept, "acked") >= 4
    assert total(kept, "tabs") <= 6
