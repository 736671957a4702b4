"""Open tabs receive changed permissions and stay open, unless a role of their user is revoked."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from bson import DBRef

from tests.people import Person, Server, Tab

CHANGED = "permissions.changed"


@dataclass
class Scene:
    """Ada has a role that only she has, with the permission `events.read`."""

    server: Server
    root: Person
    ada: Person
    role: str


@pytest.fixture
async def scene(server: Server, root: Person, ada: Person) -> Scene:
    role = f"role-{secrets.token_hex(4)}"
    await root.post("/admin/roles/new", name=role, permissions=["events.read"])
    await root.post(f"/admin/users/{ada.username}/grants", role=role)
    return Scene(server, root, ada, role)


async def grant_by_page(scene: Scene) -> None:
    await scene.root.post(f"/admin/users/{scene.ada.username}/grants", role="moderator")


async def grant_by_command(scene: Scene) -> None:
    await scene.server.run("user", "grant", scene.ada.username, "moderator")


async def grant_in_database(scene: Scene) -> None:
    async with scene.server.database() as database:
        role = await database["roles"].find_one({"name": "moderator"})
        assert role
        await database["users"].update_one(
            {"username": scene.ada.username},
            {"$push": {"roles": DBRef("roles", role["_id"])}},
        )


async def edit_by_page(scene: Scene) -> None:
    await scene.root.post(
        f"/admin/roles/{scene.role}", name=scene.role, permissions=["users.read", "roles.manage"]
    )


async def allow_by_command(scene: Scene) -> None:
    await scene.server.run("role", "edit", scene.role, "--allow", "users.read")


async def forbid_by_command(scene: Scene) -> None:
    await scene.server.run("role", "edit", scene.role, "--forbid", "events.read")


async def edit_in_database(scene: Scene) -> None:
    async with scene.server.database() as database:
        await database["roles"].update_one(
            {"name": scene.role}, {"$set": {"permissions": ["users.read"]}}
        )


MODERATOR = {"posts.moderate", "users.read"}
WAYS = {
    "page: grant": (grant_by_page, MODERATOR, set(), "root"),
    "command: grant": (grant_by_command, MODERATOR, set(), None),
    "database: grant": (grant_in_database, MODERATOR, set(), None),
    "page: edit role": (edit_by_page, {"users.read", "roles.manage"}, {"events.read"}, "root"),
    "command: allow permission": (allow_by_command, {"users.read"}, set(), None),
    "command: forbid permission": (forbid_by_command, set(), {"events.read"}, None),
    "database: edit role": (edit_in_database, {"users.read"}, {"events.read"}, None),
}


@pytest.mark.parametrize(("act", "added", "removed", "by"), WAYS.values(), ids=WAYS)
async def test_every_open_tab_receives_its_new_permissions_and_stays_open(
    scene: Scene,
    bob: Person,
    act: Callable[[Scene], Awaitable[None]],
    added: set[str],
    removed: set[str],
    by: str | None,
) -> None:
    async with (
        scene.ada.another_device() as phone,
        scene.ada.tabs() as laptop_tabs,
        bob.tabs() as bobs_tabs,
    ):
        await phone.sign_in()
        async with phone.tabs() as phone_tabs:
            await act(scene)
            for tab in [*laptop_tabs, *phone_tabs]:
                change = await tab.next(CHANGED)
                assert change["version"] > tab.hello["version"]
                assert change["by"] == by
                assert (set(change["added"]), set(change["removed"])) == (added, removed)
                assert set(change["permissions"]) == ({*tab.hello["permissions"], *added} - removed)
                me = await scene.ada.me()
                assert me
                assert [change[key] for key in ("version", "roles", "permissions")] == [
                    me[key] for key in ("version", "roles", "permissions")
                ]
            for tab in [*laptop_tabs, *phone_tabs, *bobs_tabs]:
                assert await tab.is_open()
                assert await tab.received("session.ended") == []
            for tab in bobs_tabs:
                assert await tab.received(CHANGED) == []
            for person in (scene.ada, phone):
                assert await person.is_signed_in()


async def test_a_granted_role_works_at_once_and_revoking_it_ends_the_session(
    scene: Scene,
) -> None:
    assert (await scene.ada.get("/admin/users")).status_code == 403
    async with scene.ada.tabs() as tabs:
        await grant_in_database(scene)
        for tab in tabs:
            await tab.next(CHANGED)
        assert (await scene.ada.get("/admin/users")).status_code == 200
        await scene.root.post(f"/admin/users/{scene.ada.username}/grants/moderator/revoke")
        for tab in tabs:
            assert await tab.closed() == 4401
            assert tab.messages[-1]["reason"] == "role_revoked"


async def test_concurrent_changes_raise_the_version_and_end_in_the_true_state(
    scene: Scene,
) -> None:
    """Edit roles in the database and by page, and grant roles, all at once.

    The last message of each tab has the permissions that `/api/me` shows.
    """
    async with scene.ada.tabs() as tabs, scene.server.database() as database:
        choices = [["events.read"], ["users.read"], ["users.read", "events.read"], []]
        for _ in range(5):
            await asyncio.gather(
                *(
                    database["roles"].update_one(
                        {"name": scene.role}, {"$set": {"permissions": choice}}
                    )
                    for choice in choices
                ),
                edit_by_page(scene),
                grant_by_page(scene),
            )
        # The last change: every tab receives it, since its user has not had this permission yet.
        await database["roles"].update_one(
            {"name": scene.role}, {"$set": {"permissions": ["sessions.manage"]}}
        )
        for tab in tabs:
            change = await tab.next(CHANGED)
            while "sessions.manage" not in change["permissions"]:
                change = await tab.next(CHANGED)
            versions = [m["version"] for m in [tab.hello, *await tab.received(CHANGED)]]
            assert versions == sorted(set(versions))
        me = await scene.ada.me()
        assert me
        assert [last_permissions(tab) for tab in tabs] == [me["permissions"]] * len(tabs)


def last_permissions(tab: Tab) -> list[str]:
    return [m for m in tab.messages if m["type"] == CHANGED][-1]["permissions"]


async def test_a_new_sign_in_is_announced_to_the_users_other_sessions_only(
    ada: Person, bob: Person
) -> None:
    async with ada.tabs() as laptop_tabs, bob.tabs() as bobs_tabs, ada.another_device() as phone:
        await phone.sign_in()
        me = await phone.me()
        assert me
        for tab in laptop_tabs:
            session = (await tab.next("session.started"))["session"]
            assert session["id"] == me["session"]
            assert session["ip"] == "127.0.0.1"
            assert set(session) == {"id", "device", "ip", "at"}
        async with phone.tabs() as phone_tabs:
            for tab in [*phone_tabs, *bobs_tabs]:
                assert await tab.received("session.started") == []
