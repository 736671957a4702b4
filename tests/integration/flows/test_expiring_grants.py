"""Roles for a limited time, over real workers: what happens at the end."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient

from quartapp import clock
from quartapp.db import embedded
from tests.conftest import PASSWORD, serving
from tests.people import Person, Server, command, until

MESSAGE = "One of your roles has expired. Sign in again to continue."


async def end_of(server: Server, person: Person, *, at: datetime | None = None) -> dict[str, Any]:
    """Return the end of the user's only expiring grant, after setting it to `at` if given."""
    async with server.database() as database:
        if at is not None:
            change = {"$set": {"role_ends.0.until": at, "role_ends.0.warn_at": None}}
            await database["users"].update_one({"username": person.username}, change)
        user = await database["users"].find_one({"username": person.username})
        assert user
        (end,) = user["role_ends"]
        return end


async def test_the_end_of_a_grant_closes_the_tabs_on_all_workers(
    server: Server, ada: Person
) -> None:
    await server.run("user", "grant", ada.username, "moderator", "--for", "2h")
    async with ada.tabs() as tabs:
        assert all("posts.moderate" in tab.hello["permissions"] for tab in tabs)
        soon = clock.now() + timedelta(seconds=3)
        await end_of(server, ada, at=soon)
        assert await ada.is_signed_in()
        assert await asyncio.gather(*(tab.closed(within=20) for tab in tabs)) == [4401] * len(tabs)
        for tab in tabs:
            over = tab.messages[-1]
            assert (over["reason"], over["by"], over["message"]) == ("role_revoked", None, MESSAGE)
            ended = datetime.fromisoformat(over["at"])
            assert soon - timedelta(milliseconds=200) <= ended
        assert await ada.is_refused()
    event = await server.last_event(ada.username, "role.revoked")
    assert event["actor"] is None
    await ada.sign_in()
    assert "posts.moderate" not in (await ada.me() or {})["permissions"]


async def test_a_grant_that_ended_while_no_worker_ran_counts_no_more(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with serving(data) as server, Person(server.url, "ada", PASSWORD) as ada:
        await ada.register()
        await server.run("user", "grant", "ada", "moderator", "--for", "2h")
        assert "posts.moderate" in (await ada.me() or {})["permissions"]
        cookies = ada.client.cookies
    async with embedded.running(data) as mongod:
        client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(mongod.uri)
        change = {"$set": {"role_ends.0.until": clock.now() - timedelta(milliseconds=1)}}
        assert (await client["quartapp"]["users"].update_one({}, change)).modified_count == 1
        client.close()
        shown = await command("user", "show", "ada", data=data)
        assert "roles     member\n" in shown.out
    data.with_name("data.streams").rename(tmp_path / "before")
    async with serving(data) as server, Person(server.url, "ada", PASSWORD) as ada:
        ada.client.cookies = cookies
        assert await ada.is_refused()
        assert MESSAGE in (await ada.get("/login")).text

        async def is_recorded() -> bool:
            async with server.database() as database:
                match = {"verb": "role.revoked", "actor": None}
                return await database["events"].count_documents(match) == 1

        await until(is_recorded)
        await ada.sign_in()
        assert (await ada.me() or {})["roles"] == ["member"]
