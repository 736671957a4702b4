"""The server of these tests, which does not sweep."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import PASSWORD, serving
from tests.people import Server

# Signs of an unexpected error in the log.
SURPRISES = ("Traceback", "never retrieved", "Error in ASGI", "unhandled", "_failed")


@pytest.fixture(scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """Return a server with two workers and an administrator `root`.

    Its next sweep is an hour away: a sweep would hide that the change stream was not heard.
    """
    # A tab answers pings only while its test listens, so the interval is long.
    async with serving(
        tmp_path_factory.mktemp("flows"), LIVE_SWEEP_SECONDS="3600", LIVE_PING_SECONDS="20"
    ) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server
    assert_unsurprised(server)


def assert_unsurprised(server: Server) -> None:
    """Check that the server has logged no unexpected error."""
    surprised = [line for line in server.said().splitlines() if any(s in line for s in SURPRISES)]
    assert not surprised, server.said()[-4000:]
