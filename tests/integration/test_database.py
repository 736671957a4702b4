"""The connection to the database and its replica set."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import bson
import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from quartapp import clock, models
from quartapp.db import mongo
from quartapp.settings import Settings, StartError
from tests.faults.replicas import replicas
from tests.people import until


@pytest.mark.parametrize("direct", [False, True])
async def test_reads_are_linearizable_once_the_set_has_another_member(
    tmp_path: Path, direct: bool
) -> None:
    async def are_linearizable() -> bool:
        return mongo.current_read_concern() is mongo.LINEARIZABLE

    async with replicas(tmp_path / "nodes", count=1) as nodes:
        uri = nodes.nodes[0].uri if direct else nodes.uri
        settings = Settings.load(mongodb_uri=SecretStr(uri), data=tmp_path)
        async with mongo.connected(settings, models.DOCUMENTS) as connected:
            assert mongo.current_read_concern() is mongo.MAJORITY
            admin = connected.client.admin
            config = (await admin.command("replSetGetConfig"))["config"]
            # The added member does not exist. It has no vote, so the other one stays primary.
            config["members"].append({"_id": 1, "host": "127.0.0.1:1", "votes": 0, "priority": 0})
            config["version"] += 1
            await admin.command("replSetReconfig", config)
            await until(are_linearizable)


async def _written() -> None:
    await mongo.transaction(
        lambda session: models.BarrierMark(at=clock.now()).insert(session=session)
    )


async def _followed() -> None:
    async with mongo.change_cursor([], after=None):
        pass


@pytest.mark.parametrize("work", [_written, _followed])
async def test_a_connection_made_before_the_node_was_ready_is_replaced(
    tmp_path: Path, work: Callable[[], Awaitable[None]]
) -> None:
    """The driver asks a node once whether it takes sessions, and one that is starting says no: for
    ever after, that connection had neither transactions nor a change stream."""

    async def works() -> bool:
        try:
            await work()
        except mongo.Unavailable:
            return False
        return True

    async with (
        replicas(tmp_path / "nodes", count=1) as nodes,
        AsyncMongoClient[Any](nodes.nodes[0].uri) as beside,
    ):
        await beside.admin.command({"replSetStepDown": 100, "force": True})
        await beside.admin.command("replSetMaintenance", True)
        settings = Settings.load(mongodb_uri=SecretStr(nodes.nodes[0].uri), data=tmp_path)
        async with mongo.connected(settings, models.DOCUMENTS):
            await beside.admin.command("replSetMaintenance", False)
            await beside.admin.command("replSetFreeze", 0)
            await nodes.primary()
            await until(works)


PASSWORDS = [
    "w0rd@canary",
    "w0rd:canary",
    "w0rd/canary",
    "w0rd%canary",
    "w0rd?canary",
    "w0rd#%?/:@",
]
UNREADABLE = [
    "canary",
    "mongo://canary.example",
    "mongodb:/canary.example",
    "mongodb://",
    "mongodb://ada:canary@",
    "mongodb://%zz",
    "mongodb://canary.example:port",
    "mongodb://canary.example:99999",
    "mongodb://[::1",
    "mongodb://bücher.example",
    "mongodb://a.example,,b.example/x y",
    "mongodb://a.example/?replicaSett=canary",
    "mongodb://a.example/?w=canary",
    "mongodb://a.example/?tls=canary",
    "mongodb://a.example/?directConnection=true&replicaSet",
    "mongodb://a.example/?authMechanism=canary",
    "mongodb://a.example,b.example/?directConnection=true",
    "mongodb+srv://a.example:27017/",
    "mongodb+srv://a.example,b.example/",
    *(f"mongodb://ada:{word}@a.example/x" for word in PASSWORDS),
    # The part before the slash reads like a host and a port.
    "mongodb://ada:1234/canary@a.example",
    "mongodb://ada:1234?canary@a.example",
]


@pytest.mark.parametrize("uri", UNREADABLE)
async def test_an_invalid_uri_is_reported_in_one_line_without_a_secret(
    uri: str, tmp_path: Path
) -> None:
    settings = Settings.load(mongodb_uri=SecretStr(uri), data=tmp_path)
    for named, opening in (
        ("MONGODB_URI", mongo.connected(settings, [])),
        ("--from-mongo", mongo.import_source(uri)),
    ):
        with pytest.raises(StartError) as stopped:
            async with opening:
                pass
        said = str(stopped.value)
        assert said.startswith(f"{named}: ")
        assert said.isprintable()
        for secret in ("canary", "w0rd", "1234"):
            assert secret not in said


async def test_an_invalid_option_of_the_uri_is_named(tmp_path: Path) -> None:
    for option in ("replicaSett=x", "w=-1", "tls=perhaps", "maxPoolSize=many"):
        settings = Settings.load(mongodb_uri=SecretStr(f"mongodb://a.example/?{option}"))
        with pytest.raises(StartError, match=f"the option {option.split('=')[0]} "):
            async with mongo.connected(settings, []):
                pass


@pytest.mark.parametrize("host", ["nowhere.invalid", "127.0.0.1:1"])
async def test_a_database_that_does_not_answer_is_reported_in_one_line(
    host: str, tmp_path: Path
) -> None:
    uri = f"mongodb://ada:canary@{host}/?serverSelectionTimeoutMS=200"
    settings = Settings.load(mongodb_uri=SecretStr(uri), data=tmp_path)
    with pytest.raises(StartError, match=f"MONGODB_URI: no database answers: {host}") as stopped:
        async with mongo.connected(settings, []):
            pass
    said = str(stopped.value)
    assert "canary" not in said
    assert "Topology" not in said
    assert len(said) < 250


# What a mongos answers to `hello`.
MONGOS = {
    "msg": "isdbgrid",
    "isWritablePrimary": True,
    "ismaster": True,
    "ok": 1.0,
    "maxBsonObjectSize": 2**24,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 1000,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "logicalSessionTimeoutMinutes": 30,
    "localTime": clock.now(),
}
OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013


async def _answer_as_mongos(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every command like `hello`, in the message format in which it was sent."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            length, number, _, kind = struct.unpack("<4i", await reader.readexactly(16))
            await reader.readexactly(length - 16)
            body = (
                struct.pack("<iqii", 0, 0, 0, 1) if kind == OP_QUERY else struct.pack("<ib", 0, 0)
            )
            body += bson.encode(MONGOS)
            answered = OP_REPLY if kind == OP_QUERY else OP_MSG
            writer.write(struct.pack("<4i", 16 + len(body), 0, number, answered) + body)
    writer.close()


async def test_a_sharded_cluster_is_refused_in_one_line(tmp_path: Path) -> None:
    async with await asyncio.start_server(_answer_as_mongos, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        uri = SecretStr(f"mongodb://127.0.0.1:{port}/")
        with pytest.raises(StartError, match="MONGODB_URI: this is a mongos") as stopped:
            async with mongo.connected(Settings.load(mongodb_uri=uri, data=tmp_path), []):
                pass
        assert "\n" not in str(stopped.value)


async def test_production_refuses_an_old_database_unless_it_is_allowed(settings: Settings) -> None:
    async def connects(**changes: object) -> None:
        async with mongo.connected(settings.model_copy(update=changes), models.DOCUMENTS):
            assert await mongo.server_version()

    await connects(quartapp_env="development", allow_old_mongodb=False)
    await connects(quartapp_env="production", allow_old_mongodb=True)
    assert settings.mongodb_uri
    async with AsyncMongoClient[Any](settings.mongodb_uri.get_secret_value()) as client:
        version = (await client.server_info())["version"]
    if int(version.split(".")[0]) < 7:
        with pytest.raises(StartError, match=rf"MongoDB {version}.*ALLOW_OLD_MONGODB"):
            await connects(quartapp_env="production", allow_old_mongodb=False)
    with pytest.raises(StartError, match=r"MongoDB 6\.0\.27"):
        mongo._require_supported("6.0.27")
    for current in ("7.0.0", "8.0.4", "10.0.0-rc1"):
        mongo._require_supported(current)
