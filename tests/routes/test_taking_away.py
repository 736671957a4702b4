"""P1, at every route that takes authority away: who asks after its answer is refused, also when
the worker has yet to hear of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from quartapp.models.accounts.one_time_token import Purpose
from quartapp.models.roles.role import Role
from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.routes.authenticator import app_code, secret_on, set_up
from tests.routes.conftest import Answer, Town, Visitor, role_named
from tests.routes.matrix import POSTS
from tests.routes.scenes import a_link, add_passkey, options, owning, something_strange
from tests.security_key import Authenticator

# By how much everything is heard too late. Answers that do not wait for it are sooner.
LATE = 0.15
# What only those with the role of the scene may see.
PAGE = "/admin/users"
NEW = {"password": f"{PASSWORD} changed", "confirm": f"{PASSWORD} changed"}
FACTORS = "/account/factors"


@dataclass
class Scene:
    """Ada on two devices, with a role of her own that lets her see a page; and root."""

    town: Town
    root: Visitor
    laptop: Visitor
    phone: Visitor

    @property
    def ada(self) -> str:
        return self.laptop.username

    @property
    def role(self) -> str:
        return f"role-of-{self.ada}"

    async def session(self, visitor: Visitor) -> str:
        return (await visitor.me() or {})["session"]

    async def demand_a_factor(self) -> None:
        role = await role_named(self.role)
        assert await Role.change({"_id": role.id}, {"$set": {"requires_factor": True}})


Act = Callable[[], Awaitable[Answer]]
Left = str | int
# Makes ready what the route needs; what sends the form then, whom that concerns, and where they are
# led when they ask for the page: to sign in, to set up a factor, or nowhere.
Way = Callable[[Scene], Awaitable[tuple[Act, Visitor, Left]]]
OVER, WAITING, FORBIDDEN = "/login", FACTORS, 403


def by_ada(rule: str, **fields: Any) -> Way:
    async def way(scene: Scene) -> tuple[Act, Visitor, Left]:
        path = rule.replace("<session_id>", await scene.session(scene.phone))
        if "<event_id>" in rule:
            path = rule.replace("<event_id>", await something_strange(scene.laptop))
        named = {key: value.replace("<ada>", scene.ada) for key, value in fields.items()}
        return lambda: scene.laptop.post(path, **named), scene.phone, OVER

    return way


def by_root(rule: str, *, left: Left = OVER, **fields: Any) -> Way:
    async def way(scene: Scene) -> tuple[Act, Visitor, Left]:
        parts = {"<username>": scene.ada, "<role_name>": scene.role, "<name>": scene.role}
        path, named = rule, {"name": scene.role, "username": scene.ada} | fields
        for part, value in parts.items():
            path = path.replace(part, value)
        return lambda: scene.root.post(path, **named), scene.phone, left

    return way


def in_the_same_browser(rule: str, **fields: Any) -> Way:
    """Concerns the old cookie, of which somebody has kept a copy."""

    async def way(scene: Scene) -> tuple[Act, Visitor, Left]:
        path = rule.replace("<session_id>", await scene.session(scene.laptop))
        return lambda: scene.laptop.post(path, **fields), scene.laptop.twin(), OVER

    return way


async def reset_the_password(scene: Scene) -> tuple[Act, Visitor, Left]:
    link = f"/reset/{await a_link(scene.laptop, Purpose.RESET)}"
    return lambda: scene.town.nobody().post(link, **NEW), scene.phone, OVER


async def undo_a_change_of_address(scene: Scene) -> tuple[Act, Visitor, Left]:
    link = f"/undo/{await a_link(scene.laptop, Purpose.UNDO)}"
    return lambda: scene.town.nobody().post(link), scene.phone, OVER


async def sign_in_once_too_often(scene: Scene) -> tuple[Act, Visitor, Left]:
    return scene.laptop.another_device().sign_in, scene.laptop, OVER


async def set_up_an_app(scene: Scene) -> tuple[Act, Visitor, Left]:
    path = f"{FACTORS}/totp"
    code = app_code(secret_on(await scene.laptop.get(path)))
    return lambda: scene.laptop.post(path, code=code), scene.phone, OVER


async def add_a_passkey(scene: Scene) -> tuple[Act, Visitor, Left]:
    path = f"{FACTORS}/passkeys"
    made = Authenticator().register(await options(scene.laptop, f"{path}/options"))
    return (
        lambda: scene.laptop.post(path, name="Phone", credential=made),
        scene.phone,
        OVER,
    )


async def remove_the_app(scene: Scene) -> tuple[Act, Visitor, Left]:
    await set_up(scene.laptop)
    await scene.demand_a_factor()
    twin = scene.laptop.twin()
    return lambda: scene.laptop.post(f"{FACTORS}/totp/remove"), twin, WAITING


async def remove_the_passkey(scene: Scene) -> tuple[Act, Visitor, Left]:
    (row,) = (row for row in POSTS if row.rule.endswith("<passkey_id>/remove"))
    passkey = (await owning(scene.laptop, row, {}))["passkey_id"]
    await scene.demand_a_factor()
    path = row.rule.replace("<passkey_id>", passkey)
    return lambda: scene.laptop.post(path), scene.laptop.twin(), WAITING


async def reset_factors(scene: Scene) -> tuple[Act, Visitor, Left]:
    assert (await add_passkey(scene.laptop, Authenticator())).status == 303
    path = f"/admin/users/{scene.ada}/factors/reset"
    return lambda: scene.root.post(path), scene.laptop, OVER


USER = "/admin/users/<username>"
WAYS: dict[str, list[Way]] = {
    # Every way in ends at entry.sign_in, which ends the oldest of too many.
    "/login": [sign_in_once_too_often],
    "/logout": [in_the_same_browser("/logout")],
    "/confirm": [in_the_same_browser("/confirm", password=PASSWORD)],
    "/reset/<token>": [reset_the_password],
    "/undo/<token>": [undo_a_change_of_address],
    "/account/password": [by_ada("/account/password", current_password=PASSWORD, **NEW)],
    "/account/factors/totp": [set_up_an_app],
    "/account/factors/totp/remove": [remove_the_app],
    "/account/factors/passkeys": [add_a_passkey],
    "/account/factors/passkeys/<passkey_id>/remove": [remove_the_passkey],
    "/account/sessions/<session_id>/end": [
        by_ada("/account/sessions/<session_id>/end"),
        in_the_same_browser("/account/sessions/<session_id>/end"),
    ],
    "/account/sessions/end-others": [by_ada("/account/sessions/end-others")],
    "/account/timeline/<event_id>/not-me": [by_ada("/account/timeline/<event_id>/not-me")],
    "/account/delete": [by_ada("/account/delete", username="<ada>")],
    "/account/deactivate": [by_ada("/account/deactivate")],
    f"{USER}/grants/<role_name>/revoke": [by_root(f"{USER}/grants/<role_name>/revoke")],
    f"{USER}/sessions/end": [by_root(f"{USER}/sessions/end")],
    f"{USER}/factors/reset": [reset_factors],
    f"{USER}/disable": [by_root(f"{USER}/disable")],
    f"{USER}/delete": [by_root(f"{USER}/delete")],
    "/admin/roles/<name>": [
        by_root("/admin/roles/<name>", left=FORBIDDEN),
        by_root(
            "/admin/roles/<name>",
            left=WAITING,
            permissions=[Permission.USERS_READ],
            requires_factor="y",
        ),
    ],
    "/admin/roles/<name>/delete": [by_root("/admin/roles/<name>/delete")],
}
TAKE_NOTHING = {
    *("/register", "/login/factor", "/login/passkey", "/setup/<token>", "/invited/<token>"),
    *("/forgot", "/verify/<token>", "/verify", "/account/closed", "/account/export"),
    *("/account/email", "/account/email/keep", "/account/email/again", "/account/notices/read"),
    *("/account/factors/passkeys/<passkey_id>/rename", "/account/factors/recovery-codes"),
    *("/posts/new", "/posts/<post_id>/edit", "/posts/<post_id>/delete"),
    *("/posts/<post_id>/comments", "/comments/<comment_id>/delete", "/admin/roles/new"),
    *(f"{USER}/grants", f"{USER}/enable", f"{USER}/last-day", f"{USER}/restore"),
    *("/admin/invitations", "/admin/invitations/<invitation_id>/withdraw"),
    "/admin/invitations/<invitation_id>/again",
}


@pytest.fixture
async def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"sessions_per_user": 2, "live_sweep_seconds": 3600})


@contextmanager
def late(stream: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is heard too late meanwhile, in its order."""
    held: deque[Any] = deque()
    loop, tell = asyncio.get_running_loop(), stream._tell

    def hold(event: Any) -> None:
        held.append(event)
        loop.call_later(LATE, release)

    def release() -> None:
        if held:
            tell(held.popleft())

    with monkeypatch.context() as patched:
        patched.setattr(stream, "_tell", hold)
        yield
    while held:
        release()


def test_each_post_is_known_to_take_authority_away_or_not() -> None:
    assert {row.rule for row in POSTS} == WAYS.keys() | TAKE_NOTHING
    assert WAYS.keys().isdisjoint(TAKE_NOTHING)


async def test_who_asks_after_the_answer_is_refused_however_late_the_stream_is(
    town: Town, root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = runtime_of(town.app)
    wrong = {}
    every = [(rule, way) for rule, ways in WAYS.items() for way in ways]
    for number, (rule, way) in enumerate(every):
        laptop = await town.holder(f"ada-{number}", Permission.USERS_READ)
        phone = laptop.another_device()
        await phone.sign_in()
        act, concerned, left = await way(Scene(town, root, laptop, phone))
        await parts.barrier.passed()
        assert (await concerned.get(PAGE)).status == 200, rule
        with late(parts.stream, monkeypatch):
            answer = await act()
            assert answer.status == 303, f"{rule}: {answer.text}"
            after = await concerned.get(PAGE)
        if (after.location.partition("?")[0] or after.status) != left:
            wrong[f"{number}: {rule}"] = after.status
    assert wrong == {}
