"""What the connection knows of the set that it is connected to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from quartapp import database, models
from quartapp.settings import Settings
from tests.faults.replicas import replicas
from tests.people import until


@pytest.mark.parametrize("direct", [False, True])
async def test_a_node_is_asked_for_the_last_word_of_all_as_soon_as_it_is_not_alone(
    tmp_path: Path, direct: bool
) -> None:
    async def are_linearizable() -> bool:
        return database.current() is database.LINEARIZABLE

    async with replicas(tmp_path / "nodes", count=1) as nodes:
        uri = nodes.nodes[0].uri if direct else nodes.uri
        settings = Settings.load(mongodb_uri=SecretStr(uri), data=tmp_path)
        async with database.connected(settings, models.DOCUMENTS) as connected:
            assert database.current() is database.MAJORITY
            admin = connected.client.admin
            config = (await admin.command("replSetGetConfig"))["config"]
            # Nobody is there. It has no vote, so the one that is stays primary.
            config["members"].append({"_id": 1, "host": "127.0.0.1:1", "votes": 0, "priority": 0})
            config["version"] += 1
            await admin.command("replSetReconfig", config)
            await until(are_linearizable)


async def _written() -> None:
    await database.transaction(lambda session: models.Barrier.of(None).insert(session=session))


async def _followed() -> None:
    async with database.changes([], after=None):
        pass


@pytest.mark.parametrize("work", [_written, _followed])
async def test_a_connection_from_before_the_node_was_ready_is_not_kept(
    tmp_path: Path, work: Callable[[], Awaitable[None]]
) -> None:
    """The driver asks a node once whether it takes sessions, and one that is starting says no: for
    ever after, that connection had neither transactions nor a change stream."""

    async def works() -> bool:
        try:
            await work()
        except database.Unavailable:
            return False
        return True

    async with (
        replicas(tmp_path / "nodes", count=1) as nodes,
        AsyncMongoClient[Any](nodes.nodes[0].uri) as beside,
    ):
        await beside.admin.command({"replSetStepDown": 100, "force": True})
        await beside.admin.command("replSetMaintenance", True)
        settings = Settings.load(mongodb_uri=SecretStr(nodes.nodes[0].uri), data=tmp_path)
        async with database.connected(settings, models.DOCUMENTS):
            await beside.admin.command("replSetMaintenance", False)
            await beside.admin.command("replSetFreeze", 0)
            await nodes.primary()
            await until(works)
