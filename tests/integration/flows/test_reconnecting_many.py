"""Many clients reconnect at once, as after a restart of a worker."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
import websockets

from tests.conftest import PASSWORD, serving
from tests.people import Person

AT_ONCE = 4
CLIENTS = 150


@pytest.mark.timeout(120)
async def test_many_reconnecting_clients_are_throttled_and_all_admitted(tmp_path: Path) -> None:
    async with (
        serving(
            tmp_path,
            HANDSHAKES_AT_ONCE=str(AT_ONCE),
            SOCKETS_PER_SESSION="1000",
            SOCKETS_PER_USER="1000",
            LIVE_PING_SECONDS="20",
        ) as server,
        Person(server.url, "ada", PASSWORD) as ada,
    ):
        await ada.register()
        refused: Counter[int] = Counter()
        all_connected = asyncio.Event()
        connected, took = 0, list[float]()

        async def connect() -> None:
            nonlocal connected
            while True:
                try:
                    async with ada.tab() as tab:
                        connected += 1
                        if connected == CLIENTS:
                            all_connected.set()
                        await all_connected.wait()
                        assert await tab.is_open()
                        return
                except websockets.InvalidStatus as refusal:
                    refused[refusal.response.status_code] += 1
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(connect())
            # Pages and health checks are served meanwhile.
            assert await ada.is_signed_in()
            while not all_connected.is_set():
                began = time.monotonic()
                assert await ada.status("/livez") == 200
                took.append(time.monotonic() - began)
        assert median(took) < 1
        assert set(refused) == {503}, refused
        assert connected == CLIENTS
