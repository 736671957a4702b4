"""Preparing a database: concurrently, repeatedly, and after changes by other programs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import IndexModel
from pymongo.errors import NetworkTimeout

from quartapp import models
from quartapp.db import mongo
from quartapp.db.mongo import Database
from quartapp.models import obsolete_indexes
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.write_lock import ALL_LOCKS
from quartapp.models.roles.role import Role
from quartapp.policy import BUILT_IN_ROLES, Permission
from quartapp.settings import Settings, StartError
from tests.integration.models.helpers import concurrently, dump, role


async def indexes(db: Database) -> dict[str, Any]:
    return {
        document.get_collection_name(): await db[document.get_collection_name()].index_information()
        for document in models.DOCUMENTS
    }


@pytest.fixture
async def db(unprepared: Settings) -> AsyncIterator[Database]:
    """A database of its own, because these tests change indexes."""
    async with mongo.connected(unprepared, models.DOCUMENTS) as connected:
        await models.prepare()
        yield connected


async def expect_ready(db: Database) -> None:
    made = await indexes(db)
    for document in models.DOCUMENTS:
        settings: Any = document.get_settings()
        wanted = {index.index.document["name"] for index in settings.indexes}
        assert wanted <= set(made[document.get_collection_name()])
    names = sorted(found["name"] for found in await db["roles"].find({}).to_list(None))
    assert names == sorted(BUILT_IN_ROLES)
    assert await db["guards"].distinct("_id") == sorted(ALL_LOCKS)


async def test_concurrent_connections_prepare_one_empty_database(unprepared: Settings) -> None:
    async with mongo.connected(unprepared, models.DOCUMENTS) as db:
        await concurrently(*(models.prepare() for _ in range(8)))
        await expect_ready(db)


async def test_concurrent_processes_prepare_one_empty_database(
    unprepared: Settings, mongod: str
) -> None:
    assert unprepared.mongodb_uri is not None
    program = (
        "import asyncio; from quartapp.startup import Settings, prepare; "
        "asyncio.run(prepare(Settings.load()))"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            env={
                **os.environ,
                "MONGODB_URI": mongod,
                "MONGODB_DB": unprepared.mongodb_db,
                "QUARTAPP_DATA": str(unprepared.data),
            },
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for process in processes:
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    async with mongo.connected(unprepared, models.DOCUMENTS) as db:
        await expect_ready(db)


async def test_preparing_again_changes_nothing(db: Database) -> None:
    await Role.add("editor", "Edits.", [Permission.POSTS_WRITE], by=SYSTEM)
    member = await role("member")
    await member.edit(name="member", description="Ours.", permissions=[], by=SYSTEM)
    before = await dump(db), await indexes(db)
    await models.prepare()
    assert (await dump(db), await indexes(db)) == before


async def test_preparing_keeps_foreign_indexes(db: Database) -> None:
    await db["users"].create_indexes([IndexModel([("created_at", 1)], name="by_hand")])
    await models.prepare()
    assert "by_hand" in await db["users"].index_information()


async def test_preparing_adds_new_permissions_to_the_admin_role(db: Database) -> None:
    await db["roles"].update_one({"name": "admin"}, {"$set": {"permissions": ["posts.write"]}})
    await models.prepare()
    assert set((await role("admin")).permissions) == set(Permission)


async def test_preparing_recreates_a_deleted_built_in_role(db: Database) -> None:
    await db["roles"].delete_one({"name": "moderator"})
    await models.prepare()
    await expect_ready(db)


async def test_duplicate_usernames_stop_preparation(db: Database) -> None:
    await db["users"].drop_index("username")
    for name in ("ada", "ADA"):
        row = {"username": name, "email": f"{ord(name[0])}@b.org", "password_hash": "hash"}
        await db["users"].insert_one(row)
    with pytest.raises(StartError, match="indexes of users"):
        await models.prepare()


async def test_a_different_index_of_the_same_name_stops_preparation(db: Database) -> None:
    await db["posts"].drop_index("of_author")
    await db["posts"].create_index([("author.$id", -1)], name="of_author")
    with pytest.raises(StartError, match="indexes of posts"):
        await models.prepare()


async def test_an_index_that_takes_longer_than_a_command_may_is_built(
    unprepared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mongo.connected(unprepared, models.DOCUMENTS) as db:
        collection = type(db["events"])
        build, waited = collection.create_indexes, []

        async def build_slowly(self: Any, indexes: Any) -> Any:
            if self.database.client is db.client:
                waited.append(self.name)
                raise NetworkTimeout("timed out")
            return await build(self, indexes)

        monkeypatch.setattr(collection, "create_indexes", build_slowly)
        await models.prepare()
        assert "events" in waited
        await expect_ready(db)


async def test_indexes_of_earlier_versions_are_dropped_on_request(db: Database) -> None:
    await db["sessions"].create_indexes([IndexModel([("seen_at", -1)], name="by_use")])
    await db["users"].create_indexes([IndexModel([("created_at", 1)], name="by_hand")])
    before = await indexes(db)
    await models.prepare()
    assert await indexes(db) == before
    assert await obsolete_indexes.drop_obsolete() == ["sessions.by_use"]
    assert await obsolete_indexes.drop_obsolete() == []
    del before["sessions"]["by_use"]
    assert await indexes(db) == before


def test_no_obsolete_index_is_one_that_this_version_creates() -> None:
    created = {
        f"{document.get_collection_name()}.{index.index.document['name']}"
        for document in models.DOCUMENTS
        for index in document.get_settings().indexes
    }
    for collection, names in obsolete_indexes.OBSOLETE.items():
        assert created.isdisjoint(f"{collection}.{name}" for name in names)
