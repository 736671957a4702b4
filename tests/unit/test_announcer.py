"""The announcer's change stream, without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quartapp.ws import announcer
from quartapp.ws.announcer import Announcer
from quartapp.ws.connection import Connection
from quartapp.ws.topics import Key


async def test_a_subscription_during_the_back_off_is_announced_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, lost = asyncio.Event(), asyncio.Event()
    fails = asyncio.Event()

    class Stream:
        async def pages(self) -> AsyncIterator[list[Any]]:
            opened.set()
            await fails.wait()
            raise ConnectionError
            yield []

    @asynccontextmanager
    async def change_cursor(*_: Any, after: None) -> AsyncIterator[Stream]:
        yield Stream()

    monkeypatch.setattr(announcer, "change_cursor", change_cursor)
    monkeypatch.setattr(announcer, "MIN_RETRY_SECONDS", 3600.0)
    monkeypatch.setattr(announcer, "log", SimpleNamespace(warning=lambda *_, **__: lost.set()))
    announcing = Announcer()
    key = Key("users")

    def told() -> bool:
        """Return whether a new follower is told without waiting for the stream to open."""
        follower = announcing.subscribe(cast(Connection, None), {key: "users"})
        return follower in announcing._waiting

    assert not told(), "the stream is not open yet"
    task = asyncio.create_task(announcing._follow())
    await opened.wait()
    assert told()
    fails.set()
    await lost.wait()
    assert not told()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
