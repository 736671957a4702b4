"""How workers acknowledge a barrier: on one host directly, otherwise through the database."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.people import Person, Server


async def mark_of(server: Server, person: Person, verb: str) -> dict[str, Any]:
    """Return the barrier mark that was written with the newest event of this kind."""
    event = await server.last_event(person.username, verb)
    async with server.database() as database:
        mark = await database["barriers"].find_one({"_id": event["_id"]})
        assert mark
        return mark


async def acknowledgements(server: Server, mark: dict[str, Any]) -> list[dict[str, Any]]:
    async with server.database() as database:
        return await database["acknowledgements"].find({"mark": mark["_id"]}).to_list(None)


async def workers(server: Server) -> set[str]:
    async with server.database() as database:
        return {worker["_id"] async for worker in database["workers"].find()}


async def test_workers_of_one_host_acknowledge_without_the_database(
    server: Server, root: Person, ada: Person
) -> None:
    async with ada.tabs("0", "1") as tabs:
        listening = [asyncio.create_task(tab.closed()) for tab in tabs]
        await root.post(f"/admin/users/{ada.username}/sessions/end")
        text = (await root.get("/admin/users")).text
        assert await asyncio.gather(*listening) == [4401, 4401]
    # Both workers have counted their tabs, so both have acknowledged.
    assert "2 tabs on 2 workers acknowledged" in text
    assert "did not respond" not in text
    mark = await mark_of(server, ada, "sessions.ended")
    assert mark["asker"] in await workers(server)
    assert await acknowledgements(server, mark) == []


async def test_a_command_reads_the_acknowledgements_from_the_database(
    server: Server, ada: Person
) -> None:
    text = await server.run("user", "end-sessions", ada.username)
    assert "did not respond" not in text
    mark = await mark_of(server, ada, "sessions.ended")
    assert mark["asker"] is None
    acks = await acknowledgements(server, mark)
    assert {ack["worker"] for ack in acks} == await workers(server)
