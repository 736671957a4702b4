"""The application for the tests of the live protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from quart import Quart

from quartapp import create_app
from quartapp.settings import Settings


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    """Start it without a sweep, which would hide missed events."""
    app = create_app(settings.model_copy(update={"live_sweep_seconds": 3600}))
    async with app.test_app():
        yield app
