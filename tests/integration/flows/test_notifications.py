"""Notifications are stored before they are sent; a client that reconnects gets each one once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
import websockets
from pydantic import SecretStr

from quartapp import models
from quartapp.activities import COMMENT_ADDED
from quartapp.db import mongo
from quartapp.db.mongo import transaction
from quartapp.models import User
from quartapp.settings import Settings
from tests.people import Person, Server, Tab


@asynccontextmanager
async def another_service(server: Server) -> AsyncIterator[None]:
    """Bind the documents to the database of the server, as another program would."""
    socket = quote(str(server.data / "mongod.sock"), safe="")
    settings = Settings.load(
        mongodb_uri=SecretStr(f"mongodb://{socket}/?directConnection=true"), data=server.data
    )
    async with mongo.connected(settings, models.DOCUMENTS):
        yield


async def notify(person: Person, count: int) -> None:
    """Write that many notifications for the user, one transaction after the other."""
    user = await User.by_username(person.username)
    assert user
    for number in range(count):
        await transaction(
            lambda tx, title=str(number): user.notify(COMMENT_ADDED, tx, by="bob", title=title)
        )


async def next_ids(tab: Tab, count: int) -> list[int]:
    return [int((await tab.next("notice"))["id"]) for _ in range(count)]


async def newest_cursor(person: Person) -> int:
    async with person.tab() as tab:
        return int(tab.hello["cursor"])


async def test_a_notification_is_stored_before_every_tab_receives_it(
    server: Server, root: Person, ada: Person, bob: Person
) -> None:
    async with ada.tabs() as tabs, bob.tabs() as bobs, server.database() as database:
        await root.post(f"/admin/users/{ada.username}/grants", role="moderator")
        for tab in tabs:
            notice = await tab.next("notice")
            assert notice["kind"] == "role.granted"
            assert notice["text"] == "root gave you the role moderator."
            stored = await database["notices"].find_one(
                {"user.$id": {"$exists": True}, "seq": int(notice["id"]), "kind": "role.granted"}
            )
            assert stored
        for tab in bobs:
            assert await tab.received("notice") == []
    assert "gave you the role moderator" in (await ada.get("/account/notices")).text


@pytest.mark.parametrize("missed", [1, 100, 250])
async def test_a_client_receives_missed_notifications_once_and_in_order(
    server: Server, ada: Person, missed: int
) -> None:
    cursor = await newest_cursor(ada)
    async with another_service(server):
        await notify(ada, missed)
        async with ada.tab(cursor=str(cursor)) as tab:
            assert tab.hello["cursor"] == str(cursor)
            assert await next_ids(tab, missed) == list(range(cursor + 1, cursor + missed + 1))
            await notify(ada, 1)
            assert await next_ids(tab, 1) == [cursor + missed + 1]
            assert len(await tab.received("notice")) == missed + 1


async def test_a_client_that_keeps_reconnecting_gets_each_notification_once(
    server: Server, ada: Person
) -> None:
    writers, each = 3, 40
    cursor = start = await newest_cursor(ada)
    received: list[int] = []
    chance = random.Random(1)
    async with another_service(server):
        writing = asyncio.gather(*(notify(ada, each) for _ in range(writers)))
        while len(received) < writers * each:
            # Either worker accepts it, and it is reset after some notifications or none.
            async with ada.tab(cursor=str(cursor)) as tab:
                for _ in range(min(chance.randrange(8), writers * each - len(received))):
                    received += await next_ids(tab, 1)
                    cursor = received[-1]
                tab.socket.transport.abort()
        await writing
    assert received == list(range(start + 1, start + writers * each + 1))


async def test_an_open_tab_receives_concurrent_notifications_in_order(
    server: Server, ada: Person
) -> None:
    async with another_service(server), ada.tabs() as tabs:
        start = int(tabs[0].hello["cursor"])
        writing = asyncio.gather(*(notify(ada, 20) for _ in range(4)))
        received = await asyncio.gather(*(next_ids(tab, 80) for tab in tabs))
        await writing
        assert received == [list(range(start + 1, start + 81))] * len(tabs)


async def test_without_a_cursor_a_client_starts_at_the_newest(server: Server, ada: Person) -> None:
    async with another_service(server):
        await notify(ada, 3)
        async with ada.tab() as tab:
            assert int(tab.hello["cursor"]) == await newest_cursor(ada)
            await notify(ada, 1)
            assert await next_ids(tab, 1) == [int(tab.hello["cursor"]) + 1]
            assert len(await tab.received("notice")) == 1


@pytest.mark.parametrize(
    "cursor",
    [
        "nonsense",
        "-1",
        "1e3",
        "0x10",
        "1.5",
        "%00",
        "%D9%A3",
        "9" * 16,
        "9" * 4000,
        "6b034a4e",
        "'",
    ],
)
async def test_an_invalid_cursor_is_ignored(ada: Person, cursor: str) -> None:
    async with ada.tab(cursor=cursor) as tab:
        assert int(tab.hello["cursor"]) == await newest_cursor(ada)
        assert await tab.received("notice") == []


async def test_a_cursor_beyond_the_newest_is_reset_and_loses_nothing(
    server: Server, ada: Person
) -> None:
    now = await newest_cursor(ada)
    async with another_service(server), ada.tab(cursor="999999999") as tab:
        assert tab.hello["cursor"] == str(now)
        await notify(ada, 1)
        assert await next_ids(tab, 1) == [now + 1]


async def test_a_cursor_gives_access_only_to_ones_own_notifications(
    ada: Person, bob: Person
) -> None:
    async with bob.tab(cursor="0") as tab:
        welcome = await tab.next("notice")
        assert bob.username in welcome["text"]
        assert len(await tab.received("notice")) == 1
    with pytest.raises(websockets.InvalidStatus):
        async with Person(bob.url, "nobody", "").tab(cursor="0"):
            pass
