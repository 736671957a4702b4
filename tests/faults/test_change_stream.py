"""Revocations are enforced while the change stream breaks or contains invalid documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from bson.datetime_ms import DatetimeMS

from quartapp import clock
from tests.conftest import PASSWORD, serving
from tests.faults.oracle import Load
from tests.people import Person, Server, http_client, until


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server with an administrator `root`, whose periodic check is an hour away."""
    async with serving(
        tmp_path_factory.mktemp("faults"), LIVE_SWEEP_SECONDS="3600", LIVE_PING_SECONDS="20"
    ) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server


async def streams(database: Any) -> list[dict[str, Any]]:
    """Return the open change streams of the server, one for each worker."""
    operations = database.client.admin.aggregate(
        [
            {"$currentOp": {"allUsers": True, "idleCursors": True}},
            {"$match": {"cursor.originatingCommand.pipeline.0.$changeStream": {"$exists": True}}},
        ]
    )
    return [operation async for operation in operations]


async def kill_cursors(database: Any) -> None:
    found = await streams(database)
    assert found
    ids = [operation["cursor"]["cursorId"] for operation in found]
    await database.command("killCursors", "$cmd.aggregate", cursors=ids)


async def drop_another_collection(database: Any) -> None:
    await database.drop_collection("notices")


async def rename_a_collection(database: Any) -> None:
    await database["comments"].insert_one({})
    await database["comments"].rename("comments_before", dropTarget=True)


async def write_an_unreadable_date(database: Any) -> None:
    """Write a date beyond the range of Python to the document of a user without sessions."""
    await database["users"].insert_one({"username": "year 300000", "email": "x"})
    await database["users"].update_one(
        {"username": "year 300000"}, {"$set": {"disabled_at": DatetimeMS(2**53)}}
    )
    await database["users"].delete_one({"username": "year 300000"})


def losses_logged(server: Server) -> int:
    return server.stderr().count("change_stream_lost")


async def losses_counted(server: Server) -> float:
    return await server.metric("quartapp_change_stream_losses_total")


@pytest.mark.parametrize(
    ("breakage", "is_lost"),
    [
        pytest.param(kill_cursors, True, id="cursors killed"),
        # The stream reports these, and continues.
        pytest.param(drop_another_collection, False, id="collection dropped"),
        pytest.param(rename_a_collection, False, id="collection renamed"),
        pytest.param(write_an_unreadable_date, False, id="unreadable date"),
    ],
)
async def test_a_revocation_while_the_change_stream_breaks_is_enforced(
    server: Server,
    root: Person,
    ada: Person,
    bob: Person,
    breakage: Callable[[Any], Awaitable[None]],
    is_lost: bool,
) -> None:
    logged, counted = losses_logged(server), await losses_counted(server)
    async with (
        ada.tabs() as tabs,
        bob.tabs() as bobs,
        Load(ada, {"here": server}) as load,
        server.database() as database,
    ):
        await load.more(10, status=200)
        await breakage(database)
        assert (await root.post(f"/admin/users/{ada.username}/disable")).status_code == 303
        load.revoked()
        for tab in tabs:
            assert await tab.closed() == 4401
            assert tab.messages[-1]["reason"] == "account_disabled"
        for tab in bobs:
            assert await tab.is_open()
        await load.more(20, status=401)
        assert load.accepted_after_revocation() == []
        # Each of the two workers logs and counts it.
        assert losses_logged(server) == logged + 2 * is_lost
        assert await losses_counted(server) == counted + 2 * is_lost
        # The stream continues: the next change is noticed too.
        await database["users"].update_one({"username": bob.username}, {"$set": {"roles": []}})
        for tab in bobs:
            assert await tab.closed() == 4401
            assert tab.messages[-1]["reason"] == "role_revoked"


@pytest.mark.parametrize(
    ("collection", "change"),
    [
        ("users", {"$set": {"disabled_at": DatetimeMS(2**53)}}),
        ("sessions", {"$set": {"expires_at": DatetimeMS(-(2**53))}}),
        ("sessions", {"$unset": {"idle_seconds": 1}}),
        ("sessions", {"$set": {"credential": None, "roles": "none"}}),
    ],
    ids=["invalid user date", "invalid session date", "no idle time", "invalid roles"],
)
async def test_an_invalid_document_ends_only_its_own_session(
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


async def test_a_broken_change_stream_is_opened_again(server: Server) -> None:
    logged = losses_logged(server)
    async with server.database() as database:
        assert len(await streams(database)) == 2
        await kill_cursors(database)

        async def lost() -> bool:
            return losses_logged(server) == logged + 2

        # Each worker notices it and continues. A worker that ended would be replaced.
        await until(lost)

        async def repaired() -> bool:
            return len(await streams(database)) == 2

        await until(repaired)
        async with http_client(server.url) as client:

            async def ready() -> bool:
                return (await client.get("/readyz")).status_code == 200

            # The database counts a stream as open before its worker knows that.
            await until(ready)


@pytest.mark.parametrize("drop", ["sessions", "users", "everything"])
async def test_dropping_a_collection_ends_the_sessions_in_it(
    server: Server, ada: Person, drop: str
) -> None:
    """This must be the last test with this server, since its collections are dropped."""
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
    # A stream that ends without an error is handled as a lost one.
    assert (drop == "everything") == ("StreamEnded" in server.stderr())
