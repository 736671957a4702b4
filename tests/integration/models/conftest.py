"""Fixtures for the tests of the documents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from quartapp.db.mongo import Database


@pytest.fixture
def queries(db: Database) -> Callable[[Awaitable[Any]], Awaitable[list[dict[str, Any]]]]:
    """Return the queries of the server's profiler while an awaitable runs."""

    async def ask(work: Awaitable[Any]) -> list[dict[str, Any]]:
        await db.command("profile", 2)
        try:
            await work
        finally:
            await db.command("profile", 0)
        seen = db["system.profile"].find(
            {"op": {"$in": ["query", "command", "getmore"]}, "command.profile": {"$exists": False}}
        )
        asked = await seen.to_list(None)
        await db.drop_collection("system.profile")
        return asked

    return ask
