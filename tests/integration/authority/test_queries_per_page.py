"""A signed-in page needs no database query, and a list as many for many rows as for few."""

from __future__ import annotations

import pytest
from pymongo import monitoring
from quart import Quart

from quartapp.models import Role, User
from quartapp.models.base.actor import SYSTEM
from tests.application import Shared
from tests.integration.routes.conftest import Visitor, Visitors, role_named
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


LISTS = ("/admin", "/admin/sessions", "/admin/requests", "/admin/events", "/admin/invitations")


async def test_lists_with_names_of_users_make_no_query_for_each_row(app: Quart) -> None:
    visitors = Visitors(app)
    root, member = await visitors.admin(), await role_named("member")
    await Role.add("crew", "", [], by=SYSTEM)
    counts: list[dict[str, int]] = []
    for name in ("ann", "ben", "cyd", "dan"):
        person = await visitors.signed_in(name, member)
        await User.change({"username": name}, {"$set": {"display_name": f"Name of {name}"}})
        await person.post("/account/roles", role="crew", reason="A reason.")
        await person.sign_in()
        await root.post("/admin/invitations", email=f"{name}@example.net")
        if name in ("ann", "dan"):
            counts.append({path: await queries_of(root, path) for path in LISTS})
            for path in ("/admin/sessions", "/admin/requests", "/admin/events"):
                text = (await root.get(path)).text
                assert f"Name of {name}" in text, path
                assert 'class="avatar' in text, path
    assert counts[0] == counts[1]


async def queries_of(visitor: Visitor, path: str) -> int:
    """Return the least number of queries in which the page was answered; others run meanwhile."""
    least = 1000
    for _ in range(5):
        COMMANDS.sent.clear()
        assert (await visitor.get(path)).status == 200
        least = min(least, len(COMMANDS.sent))
    return least
