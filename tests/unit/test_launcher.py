"""The launcher, when a signal or a renewal takes an unusual course."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from quartapp.serving import launcher
from quartapp.serving.launcher import SignalRequests
from quartapp.serving.workers import ForkServerClient
from quartapp.settings import Settings


@pytest.fixture
async def client() -> AsyncIterator[ForkServerClient]:
    """The connection to a fork server that does not exist."""

    async def wait() -> None:
        pass

    client = ForkServerClient(socket.socket(), wait)
    yield client
    await client.close()


async def test_a_second_signal_during_the_drain_lets_the_clean_up_end(
    tmp_path: Path, client: ForkServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    handlers: dict[int, Callable[[], None]] = {}
    cleaned_up = asyncio.Event()

    async def launch(*arguments: Any) -> None:
        requests: SignalRequests = arguments[-1]
        requests.drain = tmp_path / "draining"
        try:
            handlers[signal.SIGTERM]()
            assert requests.drain.exists()
            handlers[signal.SIGTERM]()
            await asyncio.Event().wait()
        finally:
            # Timers run in the order of their times, so the end of the drain comes before this.
            over = asyncio.Event()
            loop.call_later(0, over.set)
            await over.wait()
            cleaned_up.set()

    monkeypatch.setattr(launcher, "_launch", launch)
    monkeypatch.setattr(loop, "add_signal_handler", handlers.__setitem__)
    monkeypatch.setattr(os, "isatty", lambda _: False)
    settings = Settings.load(data=tmp_path)
    assert settings.drain_seconds == 0
    assert await launcher._until_signalled(settings, "", 0, 1, client) == 0
    assert cleaned_up.is_set()


async def test_a_fork_server_that_cannot_start_fails_the_renewal_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewal, failed, tried_again = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def start() -> ForkServerClient:
        (tried_again if failed.is_set() else failed).set()
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(ForkServerClient, "start", start)
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as group:
            renewals = group.create_task(launcher._renew_on_request([], renewal, AsyncExitStack()))
            for attempt in (failed, tried_again):
                renewal.set()
                await attempt.wait()
            renewals.cancel()
    assert [line["event"] for line in logs] == ["renewal_begins", "renewal_failed"] * 2


async def test_no_worker_is_forked_while_no_socket_can_be_opened(
    client: ForkServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(socket, "socketpair", full)
    with socket.socket() as listener:
        assert await client.fork(listener, {}) is None
