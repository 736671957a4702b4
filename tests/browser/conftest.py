"""Headless Chromium, with a separate context for each user."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, WebSocket, async_playwright, expect

from tests.conftest import PASSWORD
from tests.people import SECONDS, Person, Server

# The headless shell needs half as much time for a page as Chromium, and a fifth for a new context.
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
NewBrowser = Callable[..., Awaitable[BrowserContext]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        for item in items:
            if "browser" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="there is no chromium on this machine"))


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
            ],
        )
        yield browser
        await browser.close()


@pytest.fixture
async def new_browser(chromium: Browser) -> AsyncIterator[NewBrowser]:
    """Return a function that creates contexts, which share nothing.

    The test fails on a script error and on a violation of the Content Security Policy.
    """
    contexts: list[BrowserContext] = []
    violations: list[str] = []

    async def create(url: str, **options: Any) -> BrowserContext:
        context = await chromium.new_context(base_url=url, **options)
        context.set_default_timeout(30_000)
        context.on("weberror", lambda error: violations.append(str(error.error)))
        context.on("console", lambda message: record(message.text))
        contexts.append(context)
        return context

    def record(text: str) -> None:
        if "Content Security Policy" in text:
            violations.append(text)

    yield create
    for context in contexts:
        # Chromium does not always answer this. It closes all contexts when it exits.
        with suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                await context.close()
    assert violations == []


class Live:
    """The messages that the sockets of a page received. Create it before the page is opened."""

    def __init__(self, page: Page) -> None:
        self.messages: list[dict[str, Any]] = []
        page.on("websocket", self._listen)

    @property
    def worker(self) -> str | None:
        """The worker of the last `hello`."""
        return next((m["worker"] for m in reversed(self.messages) if m["type"] == "hello"), None)

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: self.messages.append(json.loads(frame)))


async def page_of(person: Person, new_browser: NewBrowser, **options: Any) -> Page:
    """Return a page of a new browser that has the cookies of this user."""
    browser = await new_browser(person.url, **options)
    await browser.add_cookies(
        [
            {"name": name, "value": value, "url": person.url}
            for name, value in person.client.cookies.items()
        ]
    )
    return await browser.new_page()


async def open_on(page: Page, path: str, live: Live, worker: str) -> None:
    """Open the page again and again until its socket is with the worker."""
    for _ in range(60):
        await page.goto(path)
        await is_live(page)
        if live.worker == worker:
            return
    raise AssertionError(f"no page reached worker {worker}")


async def is_live(page: Page) -> None:
    """Wait until the page's socket is connected."""
    await expect(page.locator("#live")).to_have_attribute("data-state", "connected")


async def sign_in(page: Page, username: str) -> None:
    """Sign in, with the form if the sign-in page is open, else without one and open the home page.

    A page costs more time than everything else here, so those that are not tested are not loaded.
    """
    if "/login" not in page.url:
        await post(page, "/login", login=username, password=PASSWORD)
        await page.goto("/")
        return
    await page.get_by_label("Username or email address").fill(username)
    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await submit(page)
    await page.wait_for_url(lambda url: "/login" not in url)


async def enter_password(page: Page, username: str, password: str = PASSWORD) -> None:
    """Enter a password in the dialog of a locked page."""
    dialog = page.get_by_role("alertdialog")
    link = dialog.get_by_role("link", name="Sign in again")
    if await link.is_visible():
        await link.click()
    await dialog.get_by_label("Username or email address").fill(username)
    await dialog.get_by_label("Password", exact=True).fill(password)
    await dialog.get_by_role("button", name="Sign in", exact=True).click()


async def sign_in_again(page: Page, username: str) -> None:
    """Sign in inside the dialog of a locked page, and wait for an unlocked page of that user."""
    await enter_password(page, username)
    unlocked = page.locator(f"body[data-username='{username}']:not([data-locked])")
    await expect(unlocked).to_have_count(1)


async def sign_out(page: Page) -> None:
    await page.locator(".account-button").click()
    await page.locator("#account-menu").get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("link", name="Sign in").first).to_be_visible()


async def register(page: Page, username: str) -> None:
    """Create an account without loading the form, sign in to it, and open the home page."""
    email = f"{username}@example.org"
    fields = {"username": username, "email": email, "password": PASSWORD, "confirm": PASSWORD}
    await post(page, "/register", **fields)
    await page.goto("/")


async def register_by_form(page: Page, username: str) -> None:
    await page.goto("/register")
    await fill_account(page, username)
    await submit(page)
    await page.wait_for_url(lambda url: "/register" not in url)


async def post(page: Page, path: str, **fields: str) -> None:
    """Send a form with the browser's cookies, without opening the page that it is on."""
    form = await page.request.get(path)
    token = re.search(r'name="csrf_token" value="([^"]+)"', await form.text())
    assert token, f"no form on {path}"
    answer = await page.request.post(
        path,
        form={"csrf_token": token[1], **fields},
        headers={"Origin": form.url.removesuffix(path)},
        max_redirects=0,
    )
    assert answer.status == 303, await answer.text()


async def fill_account(page: Page, username: str) -> None:
    await page.get_by_label("Username").fill(username)
    await page.get_by_label("Email address").fill(f"{username}@example.org")
    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await page.get_by_label("Repeat password", exact=True).fill(PASSWORD)


async def submit(page: Page) -> None:
    await page.locator("main form.form button[type=submit]").first.click()


async def expect_locked(page: Page, words: str) -> None:
    """Wait until the page is locked with a dialog that contains these words."""
    dialog = page.get_by_role("alertdialog")
    await expect(dialog).to_be_visible()
    await expect(dialog).to_contain_text(words)


@pytest.fixture
async def name() -> str:
    """Return a username that no other test has."""
    return f"eve-{secrets.token_hex(4)}"


@pytest.fixture
async def page(server: Server, new_browser: NewBrowser, name: str) -> Page:
    """Return the only tab of the new user `name`, who is registered and signed in."""
    page = await (await new_browser(server.url)).new_page()
    await register(page, name)
    return page
