"""Enforcement: once a revoking request is answered, the revoked access is refused.

This holds for every route that revokes, also while the change stream is late.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from quartapp.models.accounts.one_time_token import Purpose
from quartapp.models.base.actor import SYSTEM
from quartapp.models.roles.role import Role
from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.integration.routes.authenticator import app_code, secret_on, set_up
from tests.integration.routes.conftest import Answer, Visitor, Visitors, role_named, user_named
from tests.integration.routes.permission_matrix import POSTS
from tests.integration.routes.requests import (
    add_passkey,
    create_invitation,
    issue_token,
    options,
    record_suspicious_event,
    with_own_passkey,
)
from tests.security_key import Authenticator

# The delay of the change stream in seconds. Answers that do not wait for it are faster.
DELAY = 0.15
# A page that only holders of the test's role may see.
PAGE = "/admin/users"
NEW = {"password": f"{PASSWORD} changed", "confirm": f"{PASSWORD} changed"}
FACTORS = "/account/factors"


@dataclass
class Context:
    """Ada on two devices, with a role that lets her see a page; and root."""

    visitors: Visitors
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

    async def require_factor(self) -> None:
        role = await role_named(self.role)
        assert await Role.change({"_id": role.id}, {"$set": {"requires_factor": True}})


Act = Callable[[], Awaitable[Answer]]
Outcome = str | int
# Prepares a route. Returns the function that sends the form, the visitor concerned, and the answer
# that this visitor then gets for the page: a redirect to sign in or to set up a factor, or 403.
Prepare = Callable[[Context], Awaitable[tuple[Act, Visitor, Outcome]]]
SIGNED_OUT, FACTOR_NEEDED, FORBIDDEN = "/login", FACTORS, 403


def by_ada(rule: str, **fields: Any) -> Prepare:
    async def prepare(context: Context) -> tuple[Act, Visitor, Outcome]:
        path = rule.replace("<session_id>", await context.session(context.phone))
        if "<event_id>" in rule:
            path = rule.replace("<event_id>", await record_suspicious_event(context.laptop))
        named = {key: value.replace("<ada>", context.ada) for key, value in fields.items()}
        return lambda: context.laptop.post(path, **named), context.phone, SIGNED_OUT

    return prepare


def by_root(rule: str, *, outcome: Outcome = SIGNED_OUT, **fields: Any) -> Prepare:
    async def prepare(context: Context) -> tuple[Act, Visitor, Outcome]:
        parts = {"<username>": context.ada, "<role_name>": context.role, "<name>": context.role}
        path, named = rule, {"name": context.role, "username": context.ada} | fields
        for part, value in parts.items():
            path = path.replace(part, value)
        return lambda: context.root.post(path, **named), context.phone, outcome

    return prepare


def in_the_same_browser(rule: str, **fields: Any) -> Prepare:
    """The visitor concerned has a copy of the old cookie."""

    async def prepare(context: Context) -> tuple[Act, Visitor, Outcome]:
        path = rule.replace("<session_id>", await context.session(context.laptop))
        return lambda: context.laptop.post(path, **fields), context.laptop.copy(), SIGNED_OUT

    return prepare


async def reset_the_password(context: Context) -> tuple[Act, Visitor, Outcome]:
    link = f"/reset/{await issue_token(context.laptop, Purpose.RESET)}"
    return lambda: context.visitors.anonymous().post(link, **NEW), context.phone, SIGNED_OUT


async def undo_a_change_of_address(context: Context) -> tuple[Act, Visitor, Outcome]:
    link = f"/undo/{await issue_token(context.laptop, Purpose.UNDO)}"
    return lambda: context.visitors.anonymous().post(link), context.phone, SIGNED_OUT


async def sign_in_once_too_often(context: Context) -> tuple[Act, Visitor, Outcome]:
    return context.laptop.another_device().sign_in, context.laptop, SIGNED_OUT


async def accept_an_invitation(context: Context) -> tuple[Act, Visitor, Outcome]:
    """The new account's session replaces that of the browser."""
    _, token = await create_invitation(f"new-{context.ada}@example.org")
    fields = {"username": f"new-{context.ada}", "password": PASSWORD, "confirm": PASSWORD}
    return (
        lambda: context.laptop.post(f"/invited/{token}", **fields),
        context.laptop.copy(),
        SIGNED_OUT,
    )


async def set_up_an_app(context: Context) -> tuple[Act, Visitor, Outcome]:
    path = f"{FACTORS}/totp"
    code = app_code(secret_on(await context.laptop.get(path)))
    return lambda: context.laptop.post(path, code=code), context.phone, SIGNED_OUT


async def add_a_passkey(context: Context) -> tuple[Act, Visitor, Outcome]:
    path = f"{FACTORS}/passkeys"
    made = Authenticator().register(await options(context.laptop, f"{path}/options"))
    return (
        lambda: context.laptop.post(path, name="Phone", credential=made),
        context.phone,
        SIGNED_OUT,
    )


async def remove_the_app(context: Context) -> tuple[Act, Visitor, Outcome]:
    await set_up(context.laptop)
    await context.require_factor()
    copy = context.laptop.copy()
    return lambda: context.laptop.post(f"{FACTORS}/totp/remove"), copy, FACTOR_NEEDED


async def remove_the_passkey(context: Context) -> tuple[Act, Visitor, Outcome]:
    (row,) = (row for row in POSTS if row.rule.endswith("<passkey_id>/remove"))
    passkey = (await with_own_passkey(context.laptop, row, {}))["passkey_id"]
    await context.require_factor()
    path = row.rule.replace("<passkey_id>", passkey)
    return lambda: context.laptop.post(path), context.laptop.copy(), FACTOR_NEEDED


async def reset_factors(context: Context) -> tuple[Act, Visitor, Outcome]:
    assert (await add_passkey(context.laptop, Authenticator())).status == 303
    path = f"/admin/users/{context.ada}/factors/reset"
    return lambda: context.root.post(path), context.laptop, SIGNED_OUT


async def undo_a_grant(context: Context) -> tuple[Act, Visitor, Outcome]:
    spare = await Role.add(f"more-{context.role}", "", [], by=SYSTEM)
    granted = await (await user_named(context.ada)).grant(spare, by=SYSTEM)
    assert granted is not None
    return lambda: context.root.post(f"/admin/events/{granted.id}/undo"), context.phone, SIGNED_OUT


async def end_one_session(context: Context) -> tuple[Act, Visitor, Outcome]:
    path = f"/admin/sessions/{await context.session(context.phone)}/end"
    return lambda: context.root.post(path), context.phone, SIGNED_OUT


async def disable_several(context: Context) -> tuple[Act, Visitor, Outcome]:
    fields = {"users": [context.ada], "action": "disable"}
    return lambda: context.root.post("/admin/users/bulk", **fields), context.phone, SIGNED_OUT


USER = "/admin/users/<username>"
REVOKING: dict[str, list[Prepare]] = {
    # All ways to sign in end the oldest session past the limit, and that of the browser.
    "/login": [sign_in_once_too_often],
    "/invited/<token>": [accept_an_invitation],
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
        by_root("/admin/roles/<name>", outcome=FORBIDDEN),
        by_root(
            "/admin/roles/<name>",
            outcome=FACTOR_NEEDED,
            permissions=[Permission.USERS_READ],
            requires_factor="y",
        ),
    ],
    "/admin/roles/<name>/delete": [by_root("/admin/roles/<name>/delete")],
    "/admin/events/<event_id>/undo": [undo_a_grant],
    "/admin/sessions/<session_id>/end": [end_one_session],
    "/admin/users/bulk": [disable_several],
}
NOT_REVOKING = {
    *("/register", "/login/factor", "/login/passkey", "/setup/<token>"),
    *("/forgot", "/verify/<token>", "/verify", "/account/closed", "/account/export"),
    *("/account/email", "/account/email/keep", "/account/email/again", "/account/notices/read"),
    *("/account/factors/passkeys/<passkey_id>/rename", "/account/factors/recovery-codes"),
    *("/posts/new", "/posts/<post_id>/edit", "/posts/<post_id>/delete"),
    *(
        "/posts/<post_id>/draft",
        "/posts/<post_id>/comments",
        "/comments/<comment_id>/delete",
        "/admin/roles/new",
    ),
    *(f"{USER}/grants", f"{USER}/enable", f"{USER}/last-day", f"{USER}/restore"),
    *("/admin/invitations", "/admin/invitations/<invitation_id>/withdraw"),
    *("/admin/invitations/<invitation_id>/again", "/admin/users/new", "/password/strength"),
    *("/account/profile", "/account/preferences", "/account/notices/<int:seq>/read"),
    *("/account/roles", "/account/roles/requests/<request_id>/withdraw"),
    *("/admin/requests/<request_id>/grant", "/admin/requests/<request_id>/decline"),
}


@pytest.fixture
async def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"sessions_per_user": 2, "live_sweep_seconds": 3600})


@contextmanager
def delayed_stream(stream: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Delay all events of the change stream, in order."""
    held: deque[Any] = deque()
    loop, tell = asyncio.get_running_loop(), stream._dispatch

    def hold(event: Any) -> None:
        held.append(event)
        loop.call_later(DELAY, release)

    def release() -> None:
        if held:
            tell(held.popleft())

    with monkeypatch.context() as patched:
        patched.setattr(stream, "_dispatch", hold)
        yield
    while held:
        release()


def test_each_post_is_classified_as_revoking_or_not() -> None:
    assert {row.rule for row in POSTS} == REVOKING.keys() | NOT_REVOKING
    assert REVOKING.keys().isdisjoint(NOT_REVOKING)


async def test_revoked_access_is_refused_once_the_answer_arrives(
    visitors: Visitors, root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = runtime_of(visitors.app)
    wrong = {}
    every = [(rule, prepare) for rule, preparations in REVOKING.items() for prepare in preparations]
    for number, (rule, prepare) in enumerate(every):
        laptop = await visitors.with_permissions(f"ada-{number}", Permission.USERS_READ)
        phone = laptop.another_device()
        await phone.sign_in()
        act, concerned, outcome = await prepare(Context(visitors, root, laptop, phone))
        await parts.barrier.wait()
        assert (await concerned.get(PAGE)).status == 200, rule
        with delayed_stream(parts.change_stream, monkeypatch):
            answer = await act()
            assert answer.status == 303, f"{rule}: {answer.text}"
            after = await concerned.get(PAGE)
        if (after.location.partition("?")[0] or after.status) != outcome:
            wrong[f"{number}: {rule}"] = after.status
    assert wrong == {}
