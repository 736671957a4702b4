"""What the connection knows of the set that it is connected to."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

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
