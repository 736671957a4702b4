"""An unexpected error in a socket handler closes its socket, and the page reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import websockets
from quart import Quart
from structlog.testing import capture_logs
from websockets.asyncio.client import connect

from quartapp import create_app
from quartapp.authority import session_states
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from quartapp.ws import protocol
from tests.conftest import PASSWORD, serving_in_process
from tests.people import Person, Tab, until


@pytest.fixture
async def app(settings: Settings) -> Quart:
    """Start the application without pings during the test."""
    return create_app(settings.model_copy(update={"live_ping_seconds": 60}))


@pytest.fixture
async def ada(app: Quart) -> AsyncIterator[Person]:
    """A signed-in user of a real server in this process, so that a test can break it."""
    async with (
        serving_in_process(app, over=asyncio.Event()) as (host, port),
        Person(f"http://{host}:{port}", "ada", PASSWORD) as ada,
    ):
        await ada.register()
        yield ada


BROKEN = {
    "before hello": (session_states, "state_by_id"),
    "while writing": (protocol, "encode"),
    "while reading": (protocol, "parse_client_message"),
}


@pytest.mark.parametrize("when", BROKEN)
async def test_an_unexpected_error_closes_only_its_own_socket(
    app: Quart,
    ada: Person,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    async def one_is_left() -> bool:
        return len(runtime_of(app).hub) == 1

    async with ada.tab() as other:
        with monkeypatch.context() as breakage, capture_logs() as said:
            breakage.setattr(*BROKEN[when], broken)
            async with connect(
                ada.url.replace("http", "ws", 1) + "/ws",
                origin=websockets.Origin(ada.url),
                additional_headers={"Cookie": ada.cookies()},
            ) as line:
                with suppress(websockets.ConnectionClosed):
                    await line.send('{"type": "pong"}')
                assert await Tab(line).closed() == 1011
            await until(one_is_left)
        errors = [line["event"] for line in said if line["log_level"] == "error"]
        assert errors == ["socket_failed"]
        assert (await ada.post("/logout")).status_code == 303
        assert await other.closed() == 4401
