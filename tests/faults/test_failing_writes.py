"""Without writes, or only without those to the audit log, nothing changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.conftest import PASSWORD
from tests.faults.hosts import Scene, scene_of
from tests.faults.oracle import Load
from tests.faults.replicas import Replicas, connected
from tests.people import until

PATIENCE_SECONDS = 20


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with scene_of(tmp_path_factory.mktemp("unwilling"), nodes=1) as scene:
        yield scene


COLLECTIONS = ("users", "roles", "sessions", "notices", "events", "posts", "guards")
# Fields that are written without a change by a user.
IGNORED_FIELDS = ("seen_at", "online_until", "page", "worker", "uses", "ip")


async def state(database: Any) -> dict[str, list[dict[str, Any]]]:
    """Return all documents that a user can change, without the fields of `IGNORED_FIELDS`."""
    return {
        name: [
            {key: value for key, value in row.items() if key not in IGNORED_FIELDS}
            async for row in database[name].find(sort=[("_id", 1)])
        ]
        for name in COLLECTIONS
    }


# ---- the audit log cannot be written


@asynccontextmanager
async def writes_refused(database: Any, collection: str) -> AsyncIterator[None]:
    never = {"$expr": {"$eq": [1, 2]}}
    await database.command("collMod", collection, validator=never)
    try:
        yield
    finally:
        await database.command("collMod", collection, validator={})


CHANGES = {
    "grant": ("/admin/users/{name}/grants", {"role": "moderator"}),
    "revoke": ("/admin/users/{name}/grants/member/revoke", {}),
    "end sessions": ("/admin/users/{name}/sessions/end", {}),
    "disable": ("/admin/users/{name}/disable", {}),
    "create a role": (
        "/admin/roles/new",
        {"name": "helper", "description": "Helps.", "permissions": "users.read"},
    ),
    "edit a role": (
        "/admin/roles/spare",
        {"name": "spare", "description": "Spare.", "permissions": "users.read"},
    ),
    "delete a role": ("/admin/roles/spare/delete", {}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_cannot_be_audited_is_not_made(scene: Scene, change: str) -> None:
    ada, root = await scene.member(), scene.root
    path, fields = CHANGES[change]
    path = path.format(name=ada.username)
    async with scene.nodes.database() as database, ada.tab() as tab:
        if not await database["roles"].find_one({"name": "spare"}):
            made = await root.post(
                "/admin/roles/new", name="spare", description="", permissions="posts.write"
            )
            assert made.status_code == 303
        before = await state(database)
        async with writes_refused(database, "events"):
            refused = await root.post(path, **fields)
            assert refused.status_code in (500, 503)
            assert "Traceback" not in refused.text
            assert await state(database) == before
            assert await ada.is_signed_in()
            assert await tab.is_open()
        # The same form works when the audit log can be written.
        assert (await root.post(path, **fields)).status_code == 303
        assert await state(database) != before


async def test_signing_in_or_out_without_an_audit_log_is_refused(scene: Scene) -> None:
    ada = await scene.member()
    async with scene.nodes.database() as database:
        before = await state(database)
        async with writes_refused(database, "events"), ada.another_device() as other:
            left = await ada.post("/logout")
            came = await other.post("/login", page="/login", login=ada.username, password=PASSWORD)
            changed = await ada.post(
                "/account/password",
                page="/account/password",
                current_password=PASSWORD,
                password=f"{PASSWORD} anew",
                confirm=f"{PASSWORD} anew",
            )
            for answer in (left, came, changed):
                assert answer.status_code in (500, 503)
            assert await state(database) == before
            assert await ada.is_signed_in()


# ---- no writes


@asynccontextmanager
async def read_only(nodes: Replicas) -> AsyncIterator[None]:
    """Lock the database against writes, which wait, while reads are answered."""
    async with connected(nodes.uri) as database:
        await database.client.admin.command("fsync", lock=True)
        try:
            yield
        finally:
            await database.client.admin.command("fsyncUnlock")


async def timed(asking: Awaitable[httpx.Response]) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    return await asking, time.monotonic() - began


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.long)])
async def test_a_read_only_database_serves_pages_and_refuses_changes(
    scene: Scene, rounds: int
) -> None:
    for _ in range(rounds):
        await lock_and_unlock(scene)


async def lock_and_unlock(scene: Scene) -> None:
    ada, bob, root = await scene.member(), await scene.member(), scene.root
    name = f"late-{next(scene.hosts.numbers)}"
    late = await scene.hosts.visitor(scene.server, name)
    async with (
        scene.nodes.database() as database,
        Load(bob, {"server": scene.server}) as load,
        ada.tab() as tab,
    ):
        before = await state(database)
        async with read_only(scene.nodes):
            answers = await asyncio.gather(
                timed(root.post(f"/admin/users/{ada.username}/disable")),
                timed(ada.post("/posts/new", title="Words", body="Of no weight.")),
                timed(
                    late.post(
                        "/register",
                        page="/register",
                        username=name,
                        email=late.email,
                        password=PASSWORD,
                        confirm=PASSWORD,
                    )
                ),
            )
            for answer, seconds in answers:
                print(f"{answer.status_code} after {seconds:.1f} s", end=", ")
            assert [answer.status_code for answer, _ in answers] == [503] * 3
            assert max(seconds for _, seconds in answers) < PATIENCE_SECONDS
            for path in ("/", "/account", "/posts", "/account/sessions", "/api/me"):
                assert await ada.status(path) == 200, path
            assert await root.status("/admin/users") == 200
            assert await state(database) == before
        unlocked = time.monotonic()
        assert await tab.is_open()

        async def written() -> bool:
            answer = await root.post(f"/admin/users/{ada.username}/disable")
            return answer.status_code == 303

        await until(written, within=PATIENCE_SECONDS)
        print(f"written {time.monotonic() - unlocked:.1f} s after the unlocking", end=", ")
        assert await tab.closed() == 4401
        assert await ada.is_refused()
        # The refused registration has either been made completely or left nothing behind.
        user = await database["users"].find_one({"username": name})
        sessions = await database["sessions"].count_documents({"user.$id": user and user["_id"]})
        assert (user is None) == (sessions == 0)
    print(f"answers {dict(load.statuses())}, longest {load.longest():.1f} s")
    # Reads were answered all the time.
    assert set(load.statuses()) == {200}
