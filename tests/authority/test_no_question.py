"""A signed-in page asks the database nothing."""

from __future__ import annotations

import pytest
from pymongo import monitoring
from quart import Quart

from quartapp.models import User
from tests.people import until
from tests.routes.conftest import Visitors

# The change stream, the heartbeat of the lease, and what the driver says to keep a connection.
HOUSEKEEPING = {"getMore", "hello", "ismaster", "ping", "endSessions", "killCursors"}
LEASE = {"workers", "barriers"}


class Commands(monitoring.CommandListener):
    """What is sent to the database for the sake of a page."""

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
def listening() -> None:
    """Before the application makes its client: a listener hears only of clients made later."""
    monitoring.register(COMMANDS)


@pytest.mark.parametrize("path", ["/api/me", "/account/password", "/posts/new"])
async def test_a_signed_in_page_costs_no_command(app: Quart, path: str) -> None:
    ada = await Visitors(app).member()

    async def are_quiet() -> bool:
        COMMANDS.sent.clear()
        for _ in range(20):
            assert (await ada.get(path)).status == 200
        return not COMMANDS.sent

    # What the stream has yet to say of her makes a worker ask once more, and so does a heartbeat
    # that comes back late: both are seen on a loaded machine.
    await until(are_quiet, within=30)
    # The listener does hear what is asked.
    assert await User.by_username("ada")
    assert "find users" in COMMANDS.sent
