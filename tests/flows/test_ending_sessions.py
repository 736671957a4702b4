"""Every way in which a session ends: who is told what, who is not, and that the cookie is dead."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import websockets
from bson import ObjectId

from quartapp import clock
from tests.people import Person, Server, Tab, until
from tests.routes.authenticator import app_code, secret_on

LAPTOP, BOTH = "laptop", "both"
APP = "/account/factors/totp"


@dataclass
class Scene:
    """Ada on two devices, with a role of her own; root, who may take things away."""

    server: Server
    root: Person
    laptop: Person
    phone: Person
    role: str

    @property
    def ada(self) -> str:
        return self.laptop.username

    async def session(self) -> ObjectId:
        """The laptop's."""
        me = await self.laptop.me()
        assert me
        return ObjectId(me["session"])

    async def write(self, collection: str, change: dict[str, Any] | None, **match: Any) -> None:
        """As a hand in the mongo shell would: an update, or a deletion for None."""
        async with self.server.database() as database:
            if change is None:
                result = await database[collection].delete_one(match)
                assert result.deleted_count == 1
            else:
                result = await database[collection].update_one(match, change)
                assert result.modified_count == 1


Act = Callable[[Scene], Awaitable[Any]]


@dataclass
class Way:
    """An act, whose sessions it ends, the reason that is told, and who is said to have done it.

    What it needs is done `before` there are tabs.
    """

    act: Act
    ends: str
    reason: str
    by: str | None = None
    by_hand: bool = False
    before: Act | None = None


async def sign_out(scene: Scene) -> None:
    assert (await scene.laptop.post("/logout")).status_code == 303


async def end_it_from_the_phone(scene: Scene) -> None:
    path = f"/account/sessions/{await scene.session()}/end"
    assert (await scene.phone.post(path)).status_code == 303


async def end_others(scene: Scene) -> None:
    assert (await scene.phone.post("/account/sessions/end-others")).status_code == 303


async def change_the_password(scene: Scene) -> None:
    answer = await scene.phone.post(
        "/account/password",
        page="/account/password",
        current_password=scene.phone.password,
        password="another horse, another battery",
        confirm="another horse, another battery",
    )
    assert answer.status_code == 303, answer.text


async def set_up_an_app(scene: Scene) -> str:
    """On the phone, so that nobody has shown a code on the laptop. What the app shares with us."""
    secret = secret_on(await scene.phone.get(APP))
    assert (await scene.phone.post(APP, page=APP, code=app_code(secret))).status_code == 303
    return secret


async def have_an_app(scene: Scene) -> None:
    """And have shown it on both devices."""
    secret = await set_up_an_app(scene)
    await scene.laptop.sign_in()
    # The one of this moment is used.
    code, step = app_code(secret, later=30), "/login/factor"
    assert (await scene.laptop.post(step, page=step, code=code)).status_code == 303


async def be_an_administrator(scene: Scene) -> None:
    """One of two, so that she may leave."""
    granted = await scene.root.post(f"/admin/users/{scene.ada}/grants", role="admin")
    assert granted.status_code == 303


async def end_it_from_itself(scene: Scene) -> None:
    path = f"/account/sessions/{await scene.session()}/end"
    assert (await scene.laptop.post(path)).status_code == 303


async def deactivate(scene: Scene) -> None:
    assert (await scene.laptop.post("/account/deactivate")).status_code == 303


async def delete_the_account(scene: Scene) -> None:
    answer = await scene.phone.post("/account/delete", username=scene.ada, posts="remove")
    assert answer.status_code == 303, answer.text


async def delete_as_root(scene: Scene) -> None:
    answer = await scene.root.post(f"/admin/users/{scene.ada}/delete", username=scene.ada)
    assert answer.status_code == 303, answer.text


def by_root(path: str) -> Act:
    return lambda scene: posted(scene.root, path, scene)


def by_ada(path: str) -> Act:
    return lambda scene: posted(scene.laptop, path, scene)


async def posted(person: Person, path: str, scene: Scene) -> None:
    answer = await person.post(path.format(ada=scene.ada, role=scene.role))
    assert answer.status_code == 303, answer.text


def by_command(words: str) -> Act:
    async def act(scene: Scene) -> None:
        await scene.server.run(*words.format(ada=scene.ada, role=scene.role).split())

    return act


async def set_no_roles(scene: Scene) -> None:
    await scene.write("users", {"$set": {"roles": []}}, username=scene.ada)


async def pull_the_role(scene: Scene) -> None:
    async with scene.server.database() as database:
        role = await database["roles"].find_one({"name": scene.role})
    assert role
    await scene.write("users", {"$pull": {"roles": {"$id": role["_id"]}}}, username=scene.ada)


async def delete_the_role(scene: Scene) -> None:
    await scene.write("roles", None, name=scene.role)


async def set_disabled(scene: Scene) -> None:
    await scene.write("users", {"$set": {"disabled_at": clock.now()}}, username=scene.ada)


async def set_the_last_day_over(scene: Scene) -> None:
    await scene.write("users", {"$currentDate": {"closes_at": True}}, username=scene.ada)


async def set_another_hash(scene: Scene) -> None:
    await scene.write("users", {"$set": {"password_hash": "$2b$04$no"}}, username=scene.ada)


async def delete_the_user(scene: Scene) -> None:
    await scene.write("users", None, username=scene.ada)


async def set_ended(scene: Scene) -> None:
    now = clock.now()
    await scene.write("sessions", {"$set": {"ended_at": now}}, _id=await scene.session())


async def set_expired(scene: Scene) -> None:
    now = clock.now()
    await scene.write("sessions", {"$set": {"expires_at": now}}, _id=await scene.session())


async def delete_the_session(scene: Scene) -> None:
    await scene.write("sessions", None, _id=await scene.session())


USER = "/admin/users/{ada}"
WAYS = {
    "signing out": Way(sign_out, LAPTOP, "signed_out", "ada"),
    "ending it from another device": Way(end_it_from_the_phone, LAPTOP, "ended_by_user", "ada"),
    "ending all others": Way(end_others, LAPTOP, "ended_by_user", "ada"),
    "changing the password": Way(change_the_password, LAPTOP, "password_changed", "ada"),
    "ending this very one": Way(end_it_from_itself, LAPTOP, "ended_by_user", "ada"),
    "setting up a first factor": Way(set_up_an_app, LAPTOP, "factor_required", "ada"),
    "revoking one's own role": Way(
        by_ada(f"{USER}/grants/admin/revoke"),
        BOTH,
        "role_revoked",
        "ada",
        before=be_an_administrator,
    ),
    "ending all of one's own": Way(
        by_ada(f"{USER}/sessions/end"), BOTH, "ended_by_admin", "ada", before=be_an_administrator
    ),
    "disabling oneself": Way(
        by_ada(f"{USER}/disable"), BOTH, "account_disabled", "ada", before=be_an_administrator
    ),
    "deactivating": Way(deactivate, BOTH, "account_disabled", "ada"),
    "deleting": Way(delete_the_account, BOTH, "account_disabled", "ada"),
    "page: delete": Way(delete_as_root, BOTH, "account_disabled", "root"),
    "command: delete": Way(by_command("user delete {ada} --now"), BOTH, "account_disabled"),
    "page: end": Way(by_root(f"{USER}/sessions/end"), BOTH, "ended_by_admin", "root"),
    "page: revoke": Way(by_root(f"{USER}/grants/{{role}}/revoke"), BOTH, "role_revoked", "root"),
    "page: delete role": Way(by_root("/admin/roles/{role}/delete"), BOTH, "role_deleted", "root"),
    "page: disable": Way(by_root(f"{USER}/disable"), BOTH, "account_disabled", "root"),
    "page: reset factors": Way(
        by_root(f"{USER}/factors/reset"), BOTH, "ended_by_admin", "root", before=have_an_app
    ),
    "command: end": Way(by_command("user end-sessions {ada}"), BOTH, "ended_by_admin"),
    "command: revoke": Way(by_command("user revoke {ada} {role}"), BOTH, "role_revoked"),
    "command: delete role": Way(by_command("role delete {role}"), BOTH, "role_deleted"),
    "command: disable": Way(by_command("user disable {ada}"), BOTH, "account_disabled"),
    "raw: no roles": Way(set_no_roles, BOTH, "role_revoked", by_hand=True),
    "raw: role pulled": Way(pull_the_role, BOTH, "role_revoked", by_hand=True),
    "raw: role deleted": Way(delete_the_role, BOTH, "role_deleted", by_hand=True),
    "raw: disabled": Way(set_disabled, BOTH, "account_disabled", by_hand=True),
    "raw: last day over": Way(set_the_last_day_over, BOTH, "account_disabled", by_hand=True),
    "raw: another hash": Way(set_another_hash, BOTH, "password_changed", by_hand=True),
    "raw: user deleted": Way(delete_the_user, BOTH, "account_disabled", by_hand=True),
    "raw: ended": Way(set_ended, LAPTOP, "ended_by_admin", by_hand=True),
    "raw: expired": Way(set_expired, LAPTOP, "expired", by_hand=True),
    "raw: session deleted": Way(delete_the_session, LAPTOP, "ended_by_admin", by_hand=True),
}


@pytest.fixture
async def scene(server: Server, root: Person, ada: Person):
    role = f"role-{secrets.token_hex(4)}"
    made = await root.post("/admin/roles/new", name=role, permissions=["users.read"])
    given = await root.post(f"/admin/users/{ada.username}/grants", role=role)
    assert (made.status_code, given.status_code) == (303, 303)
    async with ada.another_device() as phone:
        await phone.sign_in()
        yield Scene(server, root, ada, phone, role)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_every_tab_of_an_ended_session_gets_the_reason_and_no_other_tab(
    scene: Scene, bob: Person, way: Way
) -> None:
    if way.before:
        await way.before(scene)
    by = scene.ada if way.by == "ada" else way.by
    async with (
        scene.laptop.tabs() as laptop,
        scene.phone.tabs() as phone,
        bob.tabs() as bobs,
        scene.root.tabs() as roots,
    ):
        await way.act(scene)
        if way.by_hand:
            # Nobody waits for the workers then: each hears of it in its own time.
            await until(lambda: is_refused_everywhere(scene.laptop))
        # Refused from this moment on, whether or not the tabs have heard of it.
        await refused_everywhere(scene.laptop)
        told = [*laptop, *phone] if way.ends == BOTH else laptop
        for tab in told:
            assert await tab.closed() == 4401
            assert await last_words(tab) == (way.reason, by)
        spared = [*bobs, *roots] if way.ends == BOTH else [*bobs, *roots, *phone]
        for tab in spared:
            assert await tab.is_open()
            assert await tab.heard("session.ended") == []
    if way.ends == BOTH:
        await refused_everywhere(scene.phone)
    else:
        assert await scene.phone.is_signed_in()


async def last_words(tab: Tab) -> tuple[str, str | None]:
    """The reason and the actor that the closed tab was told, once and last, in words as well."""
    (ended,) = await tab.heard("session.ended")
    assert tab.said[-1] == ended
    assert ended["message"]
    assert ended["at"]
    assert tab.socket.close_reason == ended["reason"]
    if ended["by"] not in (None, tab.hello["user"]["username"]):
        assert ended["by"] in ended["message"]
    return ended["reason"], ended["by"]


async def is_refused_everywhere(person: Person) -> bool:
    answers = await asyncio.gather(*(person.status("/api/me") for _ in range(12)))
    return set(answers) == {401}


async def refused_everywhere(person: Person) -> None:
    """Connections of their own, so many that they meet both workers; and sockets."""
    assert await is_refused_everywhere(person)
    for _ in range(4):
        with pytest.raises(websockets.InvalidStatus) as refusal:
            async with person.tab():
                pass
        assert refusal.value.response.status_code == 401


async def test_the_sign_in_page_shows_why_the_session_ended(
    server: Server, root: Person, ada: Person
) -> None:
    async with ada.tab() as tab:
        session = tab.hello["session"]
        await root.post(f"/admin/users/{ada.username}/disable")
        assert await tab.closed() == 4401
        (ended,) = await tab.heard("session.ended")
    page = await ada.get(f"/login?ended={session}")
    assert ended["message"] in page.text
    answer = await ada.get("/api/me")
    assert answer.json()["ended"] == {
        "session": session,
        "reason": "account_disabled",
        "by": "root",
        "message": ended["message"],
    }


async def test_restoring_a_revoked_role_does_not_revive_sessions(
    scene: Scene,
) -> None:
    async with scene.server.database() as database:
        user = await database["users"].find_one({"username": scene.ada})
    assert user
    async with scene.laptop.tabs() as tabs:
        await scene.write("users", {"$set": {"roles": []}}, username=scene.ada)
        for tab in tabs:
            assert await tab.closed() == 4401
    # Nobody has asked for the phone's session while the role was away.
    await scene.write("users", {"$set": {"roles": user["roles"]}}, username=scene.ada)
    await refused_everywhere(scene.laptop)
    await refused_everywhere(scene.phone)
