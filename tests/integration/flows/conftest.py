"""Check of the log of the server that these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.people import Server

# Signs of an unexpected error in the log.
ERROR_SIGNS = ("Traceback", "never retrieved", "Error in ASGI", "unhandled", "_failed")


@pytest.fixture(scope="module")
def server(server: Server) -> Iterator[Server]:
    """Return the server that all tests share, and check what it logs during a module."""
    before = len(server.stderr())
    yield server
    assert_no_errors_logged(server, since=before)


def assert_no_errors_logged(server: Server, *, since: int = 0) -> None:
    """Check that the server has logged no unexpected error, from this place in its log."""
    log = server.stderr()[since:]
    surprised = [line for line in log.splitlines() if any(s in line for s in ERROR_SIGNS)]
    assert not surprised, log[-4000:]
