"""Every way to end a session: who is notified, and that its cookie is refused afterwards."""

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
from tests.integration.routes.authenticator import app_code, secret_on
from tests.people import Person, Server, Tab, until

LAPTOP, BOTH = "laptop", "both"
APP = "/account/factors/totp"


@dataclass
class Scene:
    """Ada on two devices, with a role that only she has, and the administrator root."""

    server: Server
    root: Person
    laptop: Person
    phone: Person
    role: str

    @property
    def ada(self) -> str:
        return self.laptop.username

    async def session(self) -> ObjectId:
        """Return the id of the session on the laptop."""
        me = await self.laptop.me()
        assert me
        return ObjectId(me["session"])

    async def write(self, collection: str, change: dict[str, Any] | None, **match: Any) -> None:
        """Update one document directly in the database, or delete it if `change` is None."""
        async with self.server.database() as database:
            if change is None:
                result = await database[collection].delete_one(match)
                assert result.deleted_count == 1
            else:
                result = await database[collection].update_one(match, change)
                assert result.modified_count == 1


Act = Callable[[Scene], Awaitable[Any]]


@dataclass
class Ending:
    """An act, the sessions that it ends, and the reason and the actor in the end notice.

    `before` prepares it, before tabs are opened. An act `in_database` writes past the application,
    which therefore does not wait until the workers have acknowledged it.
    """

    act: Act
    ends: str
    reason: str
    by: str | None = None
    in_database: bool = False
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
    """Set up an authenticator app on the phone only, and return its secret."""
    secret = secret_on(await scene.phone.get(APP))
    assert (await scene.phone.post(APP, page=APP, code=app_code(secret))).status_code == 303
    return secret


async def use_an_app(scene: Scene) -> None:
    """Set up an authenticator app, and enter a code on the laptop too."""
    secret = await set_up_an_app(scene)
    await scene.laptop.sign_in()
    # The code of this moment has been used.
    code, step = app_code(secret, later=30), "/login/factor"
    assert (await scene.laptop.post(step, page=step, code=code)).status_code == 303


async def become_administrator(scene: Scene) -> None:
    """Make Ada an administrator besides root, so that she is not the last one."""
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


async def set_account_expired(scene: Scene) -> None:
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
ENDINGS = {
    "signing out": Ending(sign_out, LAPTOP, "signed_out", "ada"),
    "ending it from another device": Ending(end_it_from_the_phone, LAPTOP, "ended_by_user", "ada"),
    "ending all others": Ending(end_others, LAPTOP, "ended_by_user", "ada"),
    "changing the password": Ending(change_the_password, LAPTOP, "password_changed", "ada"),
    "ending the current one": Ending(end_it_from_itself, LAPTOP, "ended_by_user", "ada"),
    "setting up a first factor": Ending(set_up_an_app, LAPTOP, "factor_required", "ada"),
    "revoking own role": Ending(
        by_ada(f"{USER}/grants/admin/revoke"),
        BOTH,
        "role_revoked",
        "ada",
        before=become_administrator,
    ),
    "ending all own sessions": Ending(
        by_ada(f"{USER}/sessions/end"), BOTH, "ended_by_admin", "ada", before=become_administrator
    ),
    "disabling own account": Ending(
        by_ada(f"{USER}/disable"), BOTH, "account_disabled", "ada", before=become_administrator
    ),
    "deactivating account": Ending(deactivate, BOTH, "account_disabled", "ada"),
    "deleting account": Ending(delete_the_account, BOTH, "account_disabled", "ada"),
    "page: delete": Ending(delete_as_root, BOTH, "account_disabled", "root"),
    "command: delete": Ending(by_command("user delete {ada} --now"), BOTH, "account_disabled"),
    "page: end sessions": Ending(by_root(f"{USER}/sessions/end"), BOTH, "ended_by_admin", "root"),
    "page: revoke": Ending(by_root(f"{USER}/grants/{{role}}/revoke"), BOTH, "role_revoked", "root"),
    "page: delete role": Ending(
        by_root("/admin/roles/{role}/delete"), BOTH, "role_deleted", "root"
    ),
    "page: disable": Ending(by_root(f"{USER}/disable"), BOTH, "account_disabled", "root"),
    "page: reset factors": Ending(
        by_root(f"{USER}/factors/reset"), BOTH, "ended_by_admin", "root", before=use_an_app
    ),
    "command: end sessions": Ending(by_command("user end-sessions {ada}"), BOTH, "ended_by_admin"),
    "command: revoke": Ending(by_command("user revoke {ada} {role}"), BOTH, "role_revoked"),
    "command: delete role": Ending(by_command("role delete {role}"), BOTH, "role_deleted"),
    "command: disable": Ending(by_command("user disable {ada}"), BOTH, "account_disabled"),
    "database: no roles": Ending(set_no_roles, BOTH, "role_revoked", in_database=True),
    "database: role pulled": Ending(pull_the_role, BOTH, "role_revoked", in_database=True),
    "database: role deleted": Ending(delete_the_role, BOTH, "role_deleted", in_database=True),
    "database: disabled": Ending(set_disabled, BOTH, "account_disabled", in_database=True),
    "database: account expired": Ending(
        set_account_expired, BOTH, "account_disabled", in_database=True
    ),
    "database: another hash": Ending(set_another_hash, BOTH, "password_changed", in_database=True),
    "database: user deleted": Ending(delete_the_user, BOTH, "account_disabled", in_database=True),
    "database: ended": Ending(set_ended, LAPTOP, "ended_by_admin", in_database=True),
    "database: expired": Ending(set_expired, LAPTOP, "expired", in_database=True),
    "database: session deleted": Ending(
        delete_the_session, LAPTOP, "ended_by_admin", in_database=True
    ),
}


# These acts end sessions by the same code as one of the others, or tests of one process and of
# commands beside a server observe them too.
REPEATED = {
    *("ending all others", "ending the current one"),
    *("ending all own sessions", "disabling own account", "deleting account"),
    *("page: delete", "page: end sessions"),
    *("command: delete", "command: end sessions", "command: delete role", "command: disable"),
    "database: role pulled",
}
assert ENDINGS.keys() >= REPEATED


@pytest.fixture
async def scene(server: Server, root: Person, ada: Person):
    role = f"role-{secrets.token_hex(4)}"
    made = await root.post("/admin/roles/new", name=role, permissions=["users.read"])
    given = await root.post(f"/admin/users/{ada.username}/grants", role=role)
    assert (made.status_code, given.status_code) == (303, 303)
    async with ada.another_device() as phone:
        await phone.sign_in()
        yield Scene(server, root, ada, phone, role)


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(ending, id=name, marks=[pytest.mark.long] if name in REPEATED else [])
        for name, ending in ENDINGS.items()
    ],
)
async def test_every_tab_of_an_ended_session_gets_the_reason_and_no_other_tab(
    scene: Scene, bob: Person, ending: Ending
) -> None:
    if ending.before:
        await ending.before(scene)
    by = scene.ada if ending.by == "ada" else ending.by
    async with (
        scene.laptop.tabs() as laptop,
        scene.phone.tabs() as phone,
        bob.tabs() as bobs,
        scene.root.tabs() as roots,
    ):
        await ending.act(scene)
        if ending.in_database:
            # The write does not wait for the workers: each hears of it from the change stream.
            await until(lambda: is_refused_everywhere(scene.laptop))
        # Refused from this moment on, whether or not the tabs have been notified.
        await refused_everywhere(scene.laptop)
        notified = [*laptop, *phone] if ending.ends == BOTH else laptop
        for tab in notified:
            assert await tab.closed() == 4401
            assert await end_notice(tab) == (ending.reason, by)
        unaffected = [*bobs, *roots] if ending.ends == BOTH else [*bobs, *roots, *phone]
        for tab in unaffected:
            assert await tab.is_open()
            assert await tab.received("session.ended") == []
    if ending.ends == BOTH:
        await refused_everywhere(scene.phone)
    else:
        assert await scene.phone.is_signed_in()


async def end_notice(tab: Tab) -> tuple[str, str | None]:
    """Return reason and actor of the only end notice, which is the last message of a closed tab."""
    (ended,) = await tab.received("session.ended")
    assert tab.messages[-1] == ended
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
    """Check that new connections, enough to reach both workers, and new sockets are refused."""
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
        (ended,) = await tab.received("session.ended")
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
    # The phone has sent no request while the role was missing.
    await scene.write("users", {"$set": {"roles": user["roles"]}}, username=scene.ada)
    await refused_everywhere(scene.laptop)
    await refused_everywhere(scene.phone)
