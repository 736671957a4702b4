"""The server of the flows: one on which nothing is put right by a sweep."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import PASSWORD, serving
from tests.people import Server

# What stands in the log when a task, a handler or hypercorn was surprised.
SURPRISES = ("Traceback", "never retrieved", "Error in ASGI", "unhandled", "_failed")


@pytest.fixture(scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """Two workers, on which a sweep would come an hour late. Has a `root`.

    A sweep a second later would hide that the change stream was not heard.
    """
    # Tabs answer when their test listens, which it does not while it runs a command.
    async with serving(
        tmp_path_factory.mktemp("flows"), LIVE_SWEEP_SECONDS="3600", LIVE_PING_SECONDS="20"
    ) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server
    assert_unsurprised(server)


def assert_unsurprised(server: Server) -> None:
    """People who come and go, however they do it, are nothing to write a traceback about."""
    surprised = [line for line in server.said().splitlines() if any(s in line for s in SURPRISES)]
    assert not surprised, server.said()[-4000:]
