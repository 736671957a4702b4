"""Text that is typed into a form is kept in the tab until the server has accepted it."""

from __future__ import annotations

import re
import secrets
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import BrowserContext, Dialog, Page, Route, expect

from tests.browser.conftest import (
    NewBrowser,
    expect_locked,
    is_live,
    register,
    sign_in,
    sign_in_again,
    sign_out,
    submit,
)
from tests.conftest import PASSWORD
from tests.people import Person, Server, until

TYPED = "Line one\nline two, ünïcode & <b>"
DRAFT_KEYS = "() => Object.keys(sessionStorage).filter(key => key.startsWith('draft:'))"

# The drafts of posts are also on the server (see test_autosave), which would hide those of the tab.
ONLY_IN_TAB = """
const send = window.fetch
window.fetch = (url, options) =>
  String(url).endsWith("/draft") ? Promise.reject(new TypeError()) : send(url, options)
"""


@pytest.fixture
async def new_browser(new_browser: NewBrowser) -> NewBrowser:
    async def create(url: str, **options: Any) -> BrowserContext:
        context = await new_browser(url, **options)
        await context.add_init_script(ONLY_IN_TAB)
        return context

    return create


async def type_post_and_place_caret(page: Page, text: str = TYPED) -> None:
    """Type a post, and place the caret after the first line."""
    await type_post(page, text)
    await page.get_by_label("Text").evaluate("el => el.setSelectionRange(8, 8)")


async def type_post(page: Page, text: str = TYPED) -> None:
    await page.goto("/posts/new")
    await page.get_by_label("Title").fill("A title")
    await page.get_by_label("Text").fill(text)


async def expect_text(page: Page, text: str, title: str = "A title") -> None:
    await expect(page.get_by_label("Text")).to_have_value(text)
    await expect(page.get_by_label("Title")).to_have_value(title)


async def publish(page: Page) -> None:
    await submit(page)
    await expect(page.get_by_role("heading", level=1)).to_have_text("A title")


async def test_a_draft_is_restored_until_it_is_published_or_discarded(page: Page) -> None:
    note = page.get_by_role("status").filter(has_text="unsaved text")
    await type_post_and_place_caret(page)
    await page.get_by_role("link", name="Posts", exact=True).first.click()
    await page.get_by_role("link", name="Write a post").click()
    await expect_text(page, TYPED)
    await expect(note).to_have_text(re.compile(r"^Restored your unsaved text from .* UTC\.$"))
    await page.reload()
    await expect_text(page, TYPED)
    await page.get_by_role("button", name="Discard").click()
    await expect_text(page, "", "")
    await page.get_by_role("button", name="Undo").click()
    await expect_text(page, TYPED)
    await page.goto("/account")
    await page.go_back()
    await expect_text(page, TYPED)
    await publish(page)
    await page.goto("/posts/new")
    await expect_text(page, "", "")
    await expect(note).to_have_count(0)
    assert await page.evaluate(DRAFT_KEYS) == []


async def test_accepted_forms_of_every_kind_leave_no_draft(
    server: Server, root: Person, new_browser: NewBrowser
) -> None:
    answer = await root.post("/posts/new", page="/posts/new", title="A title", body="Text.")
    post = urlsplit(answer.headers["location"]).path
    role = f"tidy-{secrets.token_hex(4)}"
    page = await (await new_browser(server.url)).new_page()
    await sign_in(page, "root")
    for path, label, typed in (
        (post, "Your comment", TYPED),
        (f"{post}/edit", "Text", TYPED),
        ("/admin/roles/new", "Name", role),
        (f"/admin/roles/{role}", "Description", "Tidies up."),
        ("/admin/invitations", "Email address", f"{role}@example.org"),
    ):
        await page.goto(path)
        await page.get_by_label(label).fill(typed)
        await until(lambda: page.evaluate(DRAFT_KEYS))
        await page.reload()
        await expect(page.get_by_label(label)).to_have_value(typed)
        async with page.expect_navigation():
            await page.get_by_label(label).evaluate("field => field.form.requestSubmit()")
        await is_live(page)
        assert await page.evaluate(DRAFT_KEYS) == [], path


async def test_a_refused_form_keeps_its_draft(page: Page) -> None:
    await type_post_and_place_caret(page)
    await page.locator("main form.form").evaluate("form => form.noValidate = true")
    await page.get_by_label("Title").fill(" ")
    await submit(page)
    await expect(page.get_by_label("Title")).to_have_attribute("aria-invalid", "true")
    await page.get_by_label("Title").fill("A title")

    async def answer(route: Route) -> None:
        if route.request.method != "POST":
            await route.fallback()
        elif status := statuses.pop():
            await route.fulfill(status=status, content_type="text/html", body="<p>Sorry")
        else:
            await route.abort()

    statuses = [413, 429, 503, None]
    await page.route("**/posts/new", answer)
    while statuses:
        left = len(statuses)
        await page.get_by_role("button", name="Publish").click()
        await page.wait_for_url(re.compile("posts/new|chrome-error"))
        await expect(page.get_by_label("Title")).to_have_count(0)
        assert len(statuses) == left - 1
        # Opening a page by its address does not count as an accepted form.
        await page.goto("/posts")
        await page.goto("/posts/new")
        await expect_text(page, TYPED)
    await page.unroute("**/posts/new")
    await publish(page)
    assert await page.evaluate(DRAFT_KEYS) == []


async def test_a_draft_survives_the_end_of_the_session_with_its_caret(
    server: Server, page: Page, name: str
) -> None:
    await page.route_web_socket(re.compile(r"/ws(\?|$)"), lambda socket: None)
    await type_post_and_place_caret(page)
    await server.run("user", "end-sessions", name)
    await submit(page)
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    await page.goto("/posts/new")
    await sign_in(page, name)
    await expect_text(page, TYPED)

    # With a socket, the page is locked first.
    await page.unroute_all()
    context = page.context
    tab = await context.new_page()
    await type_post_and_place_caret(tab)
    await is_live(tab)
    await server.run("user", "end-sessions", name)
    await expect_locked(tab, "Your unsaved text is kept in this tab")
    await sign_in_again(tab, name)
    await expect_text(tab, TYPED)
    text = tab.get_by_label("Text")
    await expect(text).to_be_focused()
    assert await text.evaluate("el => el.selectionStart") == 8
    await publish(tab)


async def test_a_form_sent_after_the_session_ended_returns_after_sign_in(
    server: Server, new_browser: NewBrowser, name: str
) -> None:
    for script in (False, True):
        context = await new_browser(server.url, java_script_enabled=script)
        await context.route_web_socket(re.compile(r"/ws(\?|$)"), lambda socket: None)
        page = await context.new_page()
        await (sign_in if script else register)(page, name)
        await type_post(page)
        await server.run("user", "end-sessions", name)
        await submit(page)
        await expect(page.locator("main")).to_contain_text("Your text was not sent yet")
        await page.get_by_label("Username or email address").fill(name)
        await page.get_by_label("Password", exact=True).fill(PASSWORD)
        await submit(page)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Write a post")
        await expect_text(page, TYPED)
        await publish(page)
        if script:
            assert await page.evaluate(DRAFT_KEYS) == []


async def test_a_draft_is_offered_only_to_its_author(
    server: Server, page: Page, name: str, bob: Person
) -> None:
    await type_post_and_place_caret(page)
    await is_live(page)
    await server.run("user", "end-sessions", name)
    await sign_in_again(page, bob.username)
    await page.goto("/posts/new")
    await is_live(page)
    await expect_text(page, "", "")
    await expect(page.locator(".draft-note")).to_have_count(0)
    await server.run("user", "end-sessions", bob.username)
    await sign_in_again(page, name)
    await page.goto("/posts/new")
    await expect_text(page, TYPED)


async def test_signing_out_clears_the_drafts_of_every_tab(page: Page, name: str) -> None:
    other = await page.context.new_page()
    await type_post_and_place_caret(other)
    await is_live(other)
    await expect(other.get_by_label("Text")).to_be_focused()
    await type_post_and_place_caret(page)
    for tab in (page, other):
        await until(lambda tab=tab: tab.evaluate(DRAFT_KEYS))
    await sign_out(page)
    await expect_locked(other, "You signed out.")
    await expect(other.locator("#ended-kept")).to_be_hidden()
    for tab in (page, other):
        assert await tab.evaluate(DRAFT_KEYS) == []
    await sign_in_again(other, name)
    await other.goto("/posts/new")
    await expect_text(other, "", "")


async def test_a_draft_of_an_edit_form_never_replaces_a_newer_version(
    server: Server, ada: Person, new_browser: NewBrowser
) -> None:
    answer = await ada.post("/posts/new", page="/posts/new", title="A title", body="First.")
    edit = urlsplit(answer.headers["location"]).path + "/edit"
    page = await (await new_browser(server.url)).new_page()
    await sign_in(page, ada.username)
    await page.goto(edit)
    await page.get_by_label("Text").fill("Mine.")
    await page.goto("/posts")
    await ada.post(edit, page=edit, title="A title", body="Theirs.")
    await page.goto(edit)
    await expect_text(page, "Theirs.")
    await expect(page.locator(".draft-note")).to_contain_text("This form has changed since then.")
    await page.get_by_role("button", name="Restore").click()
    await expect_text(page, "Mine.")
    # A draft that equals the stored text is dropped.
    await page.goto("/posts")
    await ada.post(edit, page=edit, title="A title", body="Mine.")
    await page.goto(edit)
    await expect(page.locator(".draft-note")).to_have_count(0)
    await page.goto("/posts")
    assert await page.evaluate(DRAFT_KEYS) == []


async def test_closing_a_tab_with_unsaved_text_asks_and_following_a_link_does_not(
    page: Page,
) -> None:
    asked: list[str] = []

    async def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        await dialog.dismiss()

    page.on("dialog", stay)
    await page.goto("/posts/new")
    # Typed with keys, because browsers ask only those who have used the page.
    await page.get_by_label("Title").press_sequentially("A title")
    async with page.expect_event("dialog"):
        await page.close(run_before_unload=True)
    # This tab keeps the text for a page of this site.
    await page.get_by_role("link", name="Posts", exact=True).first.click()
    await page.get_by_role("link", name="Write a post").click()
    await expect(page.get_by_label("Title")).to_have_value("A title")
    await page.get_by_role("button", name="Save draft").click()
    await expect(page.get_by_text("not published yet")).to_be_visible()
    async with page.expect_event("close"):
        await page.close(run_before_unload=True)
    assert asked == ["beforeunload"]
