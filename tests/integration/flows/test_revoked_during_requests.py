"""A session or permission that is revoked while a request runs is not used at its commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from bson import ObjectId

from tests.people import Person, Server, until

ADMIN = "/admin/users/{}"


@asynccontextmanager
async def locked_document(
    server: Server, collection: str, document: ObjectId
) -> AsyncIterator[None]:
    """Lock the document, so that transactions which write it are tried again and again."""
    async with (
        server.database() as database,
        await database.client.start_session() as session,
        session.start_transaction(),
    ):
        await database[collection].update_one(
            {"_id": document}, {"$set": {"held": True}}, session=session
        )
        try:
            yield
        finally:
            await session.abort_transaction()


async def aborted_transactions(server: Server) -> int:
    """Return how many transactions the database has aborted so far."""
    async with server.database() as database:
        status = await database.client.admin.command("serverStatus")
    return status["transactions"]["totalAborted"]


async def post_by(person: Person) -> ObjectId:
    written = await person.post("/posts/new", page="/posts/new", title="Old", body="Old words.")
    assert written.status_code == 303, written.text
    return ObjectId(written.headers["Location"].rsplit("/", 1)[1])


async def start_request(server: Server, request: Any) -> asyncio.Task[httpx.Response]:
    """Start the request, and return its task when a transaction has met the locked document."""
    before = await aborted_transactions(server)
    task = asyncio.create_task(request)

    async def has_tried() -> bool:
        return await aborted_transactions(server) > before

    await until(has_tried)
    return task


async def test_a_request_whose_session_ends_before_its_commit_changes_nothing(
    server: Server, root: Person, ada: Person
) -> None:
    post = await post_by(ada)
    async with locked_document(server, "posts", post):
        edit = await start_request(
            server,
            ada.post(f"/posts/{post}/edit", page=f"/posts/{post}/edit", title="New", body="New"),
        )
        ended = await root.post(ADMIN.format(ada.username) + "/sessions/end")
        assert ended.status_code == 303
    answer = await edit
    # The sign-in page, with the text that was not saved.
    assert answer.status_code == 422
    assert "root ended your session." in answer.text
    assert 'action="/login?' in answer.text
    assert 'name="carried"' in answer.text
    assert "Old words." in (await root.get(f"/posts/{post}")).text


@pytest.mark.parametrize("kept", [False, True], ids=["permission revoked", "permission kept"])
async def test_a_permission_revoked_before_the_commit_is_not_used(
    server: Server, root: Person, ada: Person, bob: Person, kept: bool
) -> None:
    role = f"janitor-{ada.username[-8:]}"
    await root.post("/admin/roles/new", name=role, permissions=["posts.moderate"])
    await root.post(ADMIN.format(ada.username) + "/grants", role=role)
    post = await post_by(bob)
    async with locked_document(server, "posts", post):
        removal = await start_request(server, ada.post(f"/posts/{post}/delete"))
        changed = await root.post(
            f"/admin/roles/{role}",
            page=f"/admin/roles/{role}",
            name=role,
            permissions=["posts.moderate", "users.read"] if kept else ["users.read"],
        )
        assert changed.status_code == 303, changed.text
    assert (await removal).status_code == (303 if kept else 422)
    assert (await root.get(f"/posts/{post}")).status_code == (404 if kept else 200)
