"""A signed-in page needs no database query."""

from __future__ import annotations

import pytest
from pymongo import monitoring
from quart import Quart

from quartapp.models import User
from tests.application import Shared
from tests.integration.routes.conftest import Visitors
from tests.people import until

# Commands of the change stream, the heartbeat, the driver's connection monitoring, and the check of
# query plans.
HOUSEKEEPING = {"getMore", "hello", "ismaster", "ping", "endSessions", "killCursors", "explain"}
LEASE = {"workers", "barriers"}


class Commands(monitoring.CommandListener):
    """Collects the commands that a page sends to the database."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        about = event.command.get(event.command_name)
        if event.command_name not in HOUSEKEEPING and about not in LEASE:
            self.sent.append(f"{event.command_name} {about}")

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


COMMANDS = Commands()


@pytest.fixture(autouse=True, scope="module")
async def listening() -> None:
    """Register it before the client of the application is created, as PyMongo requires."""
    await Shared.stop()
    monitoring.register(COMMANDS)


@pytest.mark.parametrize("path", ["/api/me", "/account/password"])
async def test_a_signed_in_page_needs_no_database_query(app: Quart, path: str) -> None:
    ada = await Visitors(app).member()

    async def are_quiet() -> bool:
        COMMANDS.sent.clear()
        for _ in range(20):
            assert (await ada.get(path)).status == 200
        return not COMMANDS.sent

    # What the stream has yet to say of her makes a worker ask once more, and so does a heartbeat
    # that comes back late: both are seen on a loaded machine.
    await until(are_quiet, within=30)
    # The listener does receive commands.
    assert await User.by_username("ada")
    assert "find users" in COMMANDS.sent
