"""The application of the sockets' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from quart import Quart

from quartapp import create_app
from quartapp.settings import Settings


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    """Without a sweep, which would find later what was missed."""
    app = create_app(settings.model_copy(update={"live_sweep_seconds": 3600}))
    async with app.test_app():
        yield app
