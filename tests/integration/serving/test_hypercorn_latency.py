"""The direct channel of a socket, and the teardown that is postponed while it is used."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from wsproto.events import CloseConnection, TextMessage

from quartapp.serving import hypercorn_latency, hypercorn_security
from quartapp.serving.hypercorn_latency import QUIET_SECONDS, RELEASED_PER_TURN, TeardownScheduler
from tests.integration.serving.clients import websockets
from tests.people import SECONDS

SHORT = 0.4

pytestmark = pytest.mark.usefixtures("latency")


async def test_without_the_fast_path_a_socket_has_no_direct_channel(security: None) -> None:
    hypercorn_security.install()
    async with websockets(1) as (application, _):
        assert application.channels == [None]


async def test_the_end_notice_and_its_acknowledgement_bypass_the_application() -> None:
    async with websockets(1) as (application, [client]):
        acknowledged: asyncio.Queue[str] = asyncio.Queue()
        application.channels[0].send_end_notice("over", acknowledged.put_nowait)
        assert (await client.next()).data == "over"
        client.send(TextMessage("understood"))
        async with asyncio.timeout(SECONDS):
            assert await acknowledged.get() == "understood"
        application.channels[0].close(4401, "why")
        closing = await client.next()
        assert (closing.code, closing.reason) == (4401, "why")
        client.send(closing.response())
        await client.closed()
        assert await application.next_disconnected() == 0
        assert application.received.empty()


async def test_an_acknowledgement_after_the_close_frame_is_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This also holds while the teardown is postponed."""
    for wait in ("QUIET_SECONDS", "LONGEST_WAIT_SECONDS"):
        monkeypatch.setattr(hypercorn_latency, wait, 2 * SECONDS)
    async with websockets(1) as (application, [client]):
        acknowledged: asyncio.Queue[str] = asyncio.Queue()
        application.channels[0].send_end_notice("over", acknowledged.put_nowait)
        application.channels[0].close(4401, "why", listen=2 * SECONDS)
        assert (await client.next()).data == "over"
        # The client has not read the close frame yet, so it may still send messages.
        client.send(TextMessage("understood"))
        async with asyncio.timeout(SECONDS):
            assert await acknowledged.get() == "understood"
        assert (await client.next()).code == 4401
        assert application.received.empty()


async def test_a_silent_client_is_cut_off_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hypercorn_latency, "CUT_SECONDS", 0.0)
    loop = asyncio.get_running_loop()
    messages: list[str | bytes] = []
    async with websockets(2) as (application, [first, second]):
        began = loop.time()
        for channel in application.channels:
            channel.send_end_notice("over", messages.append)
            channel.close(4401, "why", listen=SHORT)
        application.channels[1].close(4401, "why")
        assert await application.next_disconnected() == 1
        assert await application.next_disconnected() == 0
        assert loop.time() - began >= SHORT
        for client in (first, second):
            assert [type(await client.next()) for _ in range(2)] == [TextMessage, CloseConnection]
            await client.closed()


async def test_a_client_that_does_not_answer_the_close_frame_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hypercorn_latency, "CUT_SECONDS", SHORT)
    loop = asyncio.get_running_loop()
    async with websockets(1) as (application, [client]):
        began = loop.time()
        application.channels[0].close(1012, "")
        assert (await client.next()).code == 1012
        await client.closed()
        assert loop.time() - began >= SHORT
        assert await application.next_disconnected() == 0


async def test_a_flood_while_an_acknowledgement_is_awaited_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hypercorn_security, "CUT_SECONDS", SHORT)
    for module in (hypercorn_security, hypercorn_latency):
        monkeypatch.setattr(module, "LATE_BYTES", 1000)
    async with websockets(1) as (application, [client]):
        messages: list[str | bytes] = []
        application.channels[0].send_end_notice("over", messages.append)
        application.channels[0].close(4401, "why", listen=2 * SECONDS)
        client.send(TextMessage("x" * 1000))
        client.send(TextMessage("understood"))
        assert await application.next_disconnected() == 0
        assert messages == []


async def test_a_closed_socket_is_freed_without_the_garbage_collector(
    unhandled: list[dict[str, Any]],
) -> None:
    gc.collect()
    gc.disable()
    try:
        async with websockets(1) as (application, [client]):
            client.send(CloseConnection(1000))
            assert await application.next_disconnected() == 0
            channel = application.channels.pop()
            # If the channel kept its callback, this callback would keep the channel alive.
            channel.send_end_notice("over", lambda _, kept=channel: kept)
            channel.close(4401, "why")
            assert (await client.next()).code == 1000
            await client.closed()
            freed = asyncio.Event()
            weakref.finalize(channel, freed.set)
            del channel
            application.sends.clear()
            async with asyncio.timeout(SECONDS):
                await freed.wait()
    finally:
        gc.enable()
    assert not unhandled


@pytest.mark.parametrize("answers", [True, False], ids=["close answered", "close unanswered"])
async def test_a_closed_socket_is_torn_down_when_the_scheduler_allows(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    waiting, allowed = asyncio.Event(), asyncio.Event()

    async def wait(_: TeardownScheduler) -> None:
        waiting.set()
        await allowed.wait()

    monkeypatch.setattr(TeardownScheduler, "wait", wait)
    monkeypatch.setattr(hypercorn_latency, "CUT_SECONDS", 2 * SECONDS if answers else 0.0)
    async with websockets(1) as (application, [client]):
        application.channels[0].close(4401, "")
        closing = await client.next()
        if answers:
            client.send(closing.response())
        async with asyncio.timeout(SECONDS):
            await waiting.wait()
        assert application.disconnected.empty()
        allowed.set()
        assert await application.next_disconnected() == 0
        await client.closed()


async def test_teardown_waits_until_no_more_end_notices_are_sent() -> None:
    loop, teardown = asyncio.get_running_loop(), TeardownScheduler()
    teardown.postpone()
    waiting = asyncio.create_task(teardown.wait())
    # In these turns it arranges to look again.
    for _ in range(3):
        await asyncio.sleep(0)
    postponed = loop.time()
    teardown.postpone()
    async with asyncio.timeout(SECONDS):
        await waiting
    assert loop.time() - postponed >= QUIET_SECONDS


async def test_teardown_waits_a_bounded_time_while_end_notices_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hypercorn_latency, "LONGEST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(hypercorn_latency, "QUIET_SECONDS", 2 * SECONDS)
    async with websockets(1) as (application, [client]):
        application.channels[0].close(4401, "")
        client.send((await client.next()).response())
        assert await application.next_disconnected() == 0


async def test_a_bounded_number_of_teardowns_is_released_per_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hypercorn_latency, "QUIET_SECONDS", 0.0)
    teardown, released = TeardownScheduler(), 0

    async def wait() -> None:
        nonlocal released
        await teardown.wait()
        released += 1

    teardown.postpone()
    teardown._quiet_at += SHORT
    waiting = [asyncio.create_task(wait()) for _ in range(3 * RELEASED_PER_TURN)]
    most = before = 0
    async with asyncio.timeout(SECONDS):
        while not all(task.done() for task in waiting):
            await asyncio.sleep(0)
            most, before = max(most, released - before), released
    assert 0 < most <= RELEASED_PER_TURN
