"""P6: a change stream that breaks, in whatever way, costs nobody their log-out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from bson.datetime_ms import DatetimeMS

from quartapp import clock
from tests.conftest import PASSWORD, serving
from tests.people import Person, Server, until


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """On which no sweep would find in time what the stream had missed. Has a `root`."""
    async with serving(tmp_path_factory.mktemp("faults"), LIVE_SWEEP_SECONDS="3600") as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server


async def streams(database: Any) -> list[dict[str, Any]]:
    """The server's open change streams, one for each worker."""
    operations = database.client.admin.aggregate(
        [
            {"$currentOp": {"allUsers": True, "idleCursors": True}},
            {"$match": {"cursor.originatingCommand.pipeline.0.$changeStream": {"$exists": True}}},
        ]
    )
    return [operation async for operation in operations]


async def kill_the_cursors(database: Any) -> None:
    found = await streams(database)
    assert found
    ids = [operation["cursor"]["cursorId"] for operation in found]
    await database.command("killCursors", "$cmd.aggregate", cursors=ids)


async def drop_another_collection(database: Any) -> None:
    await database.drop_collection("notices")


async def rename_a_collection(database: Any) -> None:
    await database["comments"].insert_one({})
    await database["comments"].rename("comments_before", dropTarget=True)


async def write_what_cannot_be_read(database: Any) -> None:
    """A date that Python has no number for, in the document of somebody who is not even on."""
    await database["users"].insert_one({"username": "year 300000", "email": "x"})
    await database["users"].update_one(
        {"username": "year 300000"}, {"$set": {"disabled_at": DatetimeMS(2**53)}}
    )
    await database["users"].delete_one({"username": "year 300000"})


@pytest.mark.parametrize(
    "breakage",
    [kill_the_cursors, drop_another_collection, rename_a_collection, write_what_cannot_be_read],
)
async def test_what_is_taken_away_while_the_stream_is_broken_is_heard(
    server: Server, ada: Person, bob: Person, breakage: Callable[[Any], Awaitable[None]]
) -> None:
    async with ada.tabs() as tabs, bob.tabs() as bobs, server.database() as database:
        await breakage(database)
        await database["users"].update_one(
            {"username": ada.username}, {"$set": {"disabled_at": clock.now()}}
        )
        await until(ada.is_refused)
        for tab in tabs:
            assert await tab.closed() == 4401
            assert tab.said[-1]["reason"] == "account_disabled"
        for tab in bobs:
            assert await tab.is_open()
        # And it goes on: the next one is heard as well.
        await database["users"].update_one({"username": bob.username}, {"$set": {"roles": []}})
        for tab in bobs:
            assert await tab.closed() == 4401
            assert tab.said[-1]["reason"] == "role_revoked"


@pytest.mark.parametrize(
    ("collection", "change"),
    [
        ("users", {"$set": {"disabled_at": DatetimeMS(2**53)}}),
        ("sessions", {"$set": {"expires_at": DatetimeMS(-(2**53))}}),
        ("sessions", {"$unset": {"idle_seconds": 1}}),
        ("sessions", {"$set": {"credential": None, "roles": "none"}}),
    ],
    ids=["user of no year", "session of no year", "session of no length", "session of no sense"],
)
async def test_a_document_that_makes_no_sense_ends_its_own_session_and_hides_nobody_elses_end(
    server: Server, ada: Person, bob: Person, collection: str, change: dict[str, Any]
) -> None:
    async with ada.tabs() as tabs, bob.tabs() as bobs, server.database() as database:
        user = await database["users"].find_one({"username": ada.username})
        assert user
        whose = {"_id": user["_id"]} if collection == "users" else {"user.$id": user["_id"]}
        await database[collection].update_one(whose, change)
        for tab in tabs:
            assert await tab.closed() == 4401
        await until(ada.is_refused)
        await database["users"].update_one({"username": bob.username}, {"$set": {"roles": []}})
        for tab in bobs:
            assert await tab.closed() == 4401


async def test_a_broken_stream_is_not_ready_and_repairs_itself(server: Server) -> None:
    async with server.database() as database:
        assert len(await streams(database)) == 2
        await kill_the_cursors(database)

        async def repaired() -> bool:
            return len(await streams(database)) == 2

        await until(repaired)
        async with httpx.AsyncClient(base_url=server.url) as client:

            async def ready() -> bool:
                return (await client.get("/readyz")).status_code == 200

            # A stream is open for the database a moment before its worker has heard so.
            await until(ready)


@pytest.mark.parametrize("drop", ["sessions", "users", "everything"])
async def test_sessions_whose_documents_are_gone_are_over(
    server: Server, ada: Person, drop: str
) -> None:
    """The last of this server: what is dropped is its own."""
    async with ada.tabs() as tabs, server.database() as database:
        if drop == "everything":
            await database.client.drop_database(database.name)
        else:
            await database.drop_collection(drop)
        await until(ada.is_refused)
        for tab in tabs:
            assert await tab.closed() == 4401
    async with Person(server.url, f"{ada.username}-again", PASSWORD) as again:
        await again.register()
        async with again.tabs() as tabs, server.database() as database:
            await database["sessions"].update_many({}, {"$set": {"ended_at": clock.now()}})
            for tab in tabs:
                assert await tab.closed() == 4401
