"""The navigation in the header: which link is the current page, and which links are hidden."""

from __future__ import annotations

import re

import pytest

from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from tests.integration.routes.conftest import Answer, Visitor, Visitors, role_named, user_named
from tests.people import until


def current(answer: Answer) -> dict[str, str]:
    """Return the value of `aria-current` by href, for the links that have one."""
    return dict(re.findall(r'<a href="([^"]*)" aria-current="([^"]*)"', answer.text))


def hidden(answer: Answer) -> set[str]:
    """Return the hrefs of the links in hidden items."""
    return set(re.findall(r'<li data-needs="[^"]*" hidden><a href="([^"]*)"', answer.text))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/posts", {"/posts": "page"}),
        ("/posts/new", {"/posts": "true"}),
        ("/account", {"/account": "page"}),
        ("/account/password", {"/account": "true"}),
        ("/account/sessions", {"/account/sessions": "page"}),
        ("/account/notices", {"/account/notices": "page"}),
        ("/users/ada", {"/users/ada": "page"}),
        ("/admin", {"/admin": "page"}),
        ("/admin/users", {"/admin/users": "page"}),
        ("/admin/users/root", {"/admin/users": "true", "/admin/users/root": "page"}),
        ("/", {}),
    ],
)
async def test_the_link_to_the_page_is_marked_as_current(
    visitors: Visitors, path: str, expected: dict[str, str]
) -> None:
    ada = await visitors.signed_in("ada", await role_named("admin"))
    await visitors.account("root")
    assert current(await ada.get(path)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", {}),
        ("/posts", {"/posts": "page"}),
        ("/login", {"/login": "page"}),
        ("/register", {"/register": "page"}),
    ],
)
async def test_visitors_have_links_to_sign_in_and_no_form_to_sign_out(
    anonymous: Visitor, path: str, expected: dict[str, str]
) -> None:
    answer = await anonymous.get(path)
    assert current(answer) == expected
    assert {"/posts", "/login", "/register"} <= set(answer.links)
    assert 'action="/logout"' not in answer.text


async def test_the_form_to_sign_out_has_the_token_of_its_response(ada: Visitor) -> None:
    pages = [(await ada.get("/account")).text for _ in range(2)]
    tokens = [
        re.findall(
            r'action="/logout" method="post"><input [^>]*name="csrf_token" value="([^"]+)"', page
        )
        for page in pages
    ]
    assert len(tokens[0]) == len(tokens[1]) == 1
    assert tokens[0] != tokens[1]


async def test_a_profile_with_a_name_that_is_quoted_in_urls_is_marked(visitors: Visitors) -> None:
    jose = await visitors.member("josé")
    assert current(await jose.get("/users/josé")) == {"/users/jos%C3%A9": "page"}


async def test_links_follow_the_permissions_of_each_user(visitors: Visitors) -> None:
    reader = await visitors.with_permissions("ada", Permission.USERS_READ)
    other = await visitors.member("bob")
    assert "/admin/users" not in hidden(await reader.get("/account"))
    assert "/admin/users" in hidden(await other.get("/account"))
    person = await user_named("bob")
    await person.grant(await role_named("moderator"), by=SYSTEM)

    assert "/admin/users" not in hidden(await _after_grant(other))
    assert "/admin/roles" in hidden(await other.get("/account"))


async def _after_grant(visitor: Visitor) -> Answer:
    """Return a page that was made after the grant reached this worker."""

    async def holds() -> bool:
        me = await visitor.me()
        return me is not None and "moderator" in me["roles"]

    await until(holds)
    return await visitor.get("/account")


async def test_a_new_notification_changes_the_number_in_the_header(visitors: Visitors) -> None:
    ada = await visitors.member("ada")

    async def unread() -> int:
        page = (await ada.get("/account")).text
        return int(re.findall(r"data-unread>(\d*)<", page)[0] or 0)

    before = await unread()
    await (await user_named("ada")).grant(await role_named("moderator"), by=SYSTEM)

    async def is_counted() -> bool:
        return await unread() == before + 1

    await until(is_counted)
