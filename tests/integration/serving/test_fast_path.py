"""The live layer with `FAST_PATH` on and off: the same messages, closes and receipts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import cast

import pytest

from tests.conftest import PASSWORD, serving
from tests.integration.flows.conftest import assert_no_errors_logged
from tests.integration.flows.test_socket_limits import (
    more_than_buffers_hold,
    stalled_client,
    store_notifications,
)
from tests.people import Person, Server, until


@pytest.fixture(scope="module", params=["on", "off"])
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    async with serving(
        tmp_path_factory.mktemp("fast-path"),
        workers=1,
        FAST_PATH=cast(str, request.param),
        LIVE_MAILBOX="8",
        LIVE_PING_SECONDS="1",
    ) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server
    assert_no_errors_logged(server)


async def test_an_ended_session_closes_its_sockets_with_its_reason(
    server: Server, root: Person, ada: Person, bob: Person
) -> None:
    async with ada.tab() as tab, bob.tab() as other:
        listening = asyncio.create_task(tab.closed())
        await root.post(f"/admin/users/{ada.username}/sessions/end")
        assert await listening == 4401
        assert tab.socket.close_reason == "ended_by_admin"
        (notice,) = await tab.received("session.ended")
        assert (notice["reason"], notice["by"]) == ("ended_by_admin", "root")
        assert await other.is_open()
    event = await server.last_event(ada.username, "sessions.ended")
    assert [(receipt["tabs"], receipt["acked"]) for receipt in event["receipts"]] == [(1, 1)]


async def test_a_client_that_does_not_read_is_cut_off_and_delays_no_other(
    server: Server, root: Person, ada: Person
) -> None:
    await store_notifications(server, ada, more_than_buffers_hold())
    async with ada.tab() as tab:
        with stalled_client(ada):
            await tab.next("ping")
            await root.post(f"/admin/users/{ada.username}/sessions/end")
            assert await tab.closed() == 4401

            async def all_closed() -> bool:
                return await server.metric("quartapp_sockets") == 0

            await until(all_closed)


async def test_a_restart_closes_sockets_with_1012_and_they_reconnect(
    server: Server, ada: Person
) -> None:
    async with ada.tab() as tab:
        server.process.send_signal(signal.SIGHUP)
        assert await tab.closed(within=40) == 1012
    async with ada.tab() as again:
        assert again.hello["user"]["username"] == ada.username
