"""The main stories in Firefox and WebKit. tests/browser has all stories, in Chromium."""

from __future__ import annotations

import secrets

import pytest

from tests.conftest import PASSWORD
from tests.other_browsers.conftest import Tab
from tests.people import Server


@pytest.fixture
async def name(tab: Tab) -> str:
    """Return the name of a new user, who has registered in the tab."""
    name = f"eve-{secrets.token_hex(4)}"
    await tab.open("/register")
    await tab.fill(username=name, email=f"{name}@example.org", password=PASSWORD, confirm=PASSWORD)
    await tab.click("main form.form button[type=submit]")
    await tab.shows("body[data-session]")
    return name


async def test_permissions_arrive_and_leave_in_an_open_page(
    server: Server, tab: Tab, name: str
) -> None:
    role = f"reader-{secrets.token_hex(4)}"
    await server.run("role", "create", role)
    await server.run("user", "grant", name, role)
    await tab.open("/posts")
    await tab.hides("a[href='/admin/users']")
    await server.run("role", "edit", role, "--allow", "users.read")
    await tab.shows("a[href='/admin/users']")
    await server.run("role", "edit", role, "--forbid", "users.read")
    await tab.hides("a[href='/admin/users']")


async def test_an_ended_session_locks_the_page_and_keeps_the_draft(
    server: Server, tab: Tab, name: str
) -> None:
    await tab.open("/posts/new")
    await tab.fill(title="Half a thought", body="Typed before the end.")
    await server.run("user", "end-sessions", name)
    await tab.shows("#ended", "An administrator")
    await tab.click("#ended-action")
    await tab.fill(login=name, password=PASSWORD)
    await tab.click("#ended-form form.form button[type=submit]")
    await tab.hides("#ended")
    await tab.is_at("/posts/new")
    assert await tab.value("title") == "Half a thought"
    assert await tab.value("body") == "Typed before the end."


async def test_going_back_after_signing_out_shows_no_private_page(tab: Tab, name: str) -> None:
    await tab.open("/account")
    await tab.shows("h1")
    await tab.click(".account-button")
    await tab.click("#account-menu form button")
    await tab.hides("body[data-session]")
    await tab.back()
    await tab.shows("input[name=login], #ended")


async def test_forms_work_and_name_what_is_wrong(tab: Tab, name: str) -> None:
    await tab.open("/posts/new")
    await tab.fill(title="A title", body=" ")
    await tab.click("main form.form button[type=submit]")
    await tab.shows(".field-wrong .error")
    assert await tab.value("title") == "A title"
    await tab.fill(body="Now with words.")
    await tab.click("main form.form button[type=submit]")
    await tab.shows("h1", "A title")
