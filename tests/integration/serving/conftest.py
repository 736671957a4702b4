from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypercorn import protocol
from hypercorn.asyncio import run
from hypercorn.protocol import h2, h11, ws_stream

from quartapp.serving import hypercorn_latency, hypercorn_security


@pytest.fixture
def security(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the classes of hypercorn that `FAST_PATH=off` uses, for one test."""
    for module, name in (
        (run, "TCPServer"),
        (protocol, "H11Protocol"),
        (h11, "WSStream"),
        (h2, "WSStream"),
        (ws_stream, "Handshake"),
        (ws_stream, "WebsocketBuffer"),
    ):
        # monkeypatch restores the current classes after the test.
        monkeypatch.setattr(module, name, getattr(module, name))
    hypercorn_security.install()


@pytest.fixture
def latency(security: None) -> None:
    """Install all our classes of hypercorn, for one test."""
    hypercorn_latency.install()


@pytest.fixture
async def unhandled() -> AsyncIterator[list[dict[str, Any]]]:
    """Return the errors that have reached the exception handler of the event loop."""
    loop, caught = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: caught.append(context))
    yield caught
    loop.set_exception_handler(None)
