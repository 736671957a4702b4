"""The application that the tests of a process share. Without it they take twice as long."""

from __future__ import annotations

from quart import Quart

from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.application import Shared


async def test_the_next_test_gets_the_running_application(
    app: Quart, shared: Shared, settings: Settings
) -> None:
    assert await shared.app(settings) is app


async def test_a_test_that_stops_a_part_is_followed_by_a_new_application(
    app: Quart, shared: Shared, settings: Settings
) -> None:
    await runtime_of(app).membership.stop()
    assert await shared.app(settings) is not app
