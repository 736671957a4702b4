"""Live regions: parts of an open page that are replaced when their topics change."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import Live, NewBrowser, is_live, page_of
from tests.people import Person, Server, until

# The activity page also has this region, which no page of the application has.
FORM = """<section id="form" data-topics="account">
<p id="number">{number}</p>
<details><summary>More</summary><p>Much.</p></details>
<input id="field" aria-label="Field" value="as stored"><button type="button">Press</button>
</section>"""

# Marks the body when the page is told of a change.
TELL = """() => {
  const refresh = refreshTopics
  window.refreshTopics = topics => { refresh(topics); document.body.id = "told" }
}"""


@pytest.fixture
async def page(ada: Person, new_browser: NewBrowser) -> Page:
    """Return the activity page of Ada, with a region that is different each time it is fetched."""
    page = await page_of(ada, new_browser)
    live = Live(page)
    fetched = 0

    async def add_form(route: Route) -> None:
        nonlocal fetched
        fetched += 1
        answer = await route.fetch()
        text = (await answer.text()).replace("</main>", FORM.format(number=fetched) + "</main>")
        await route.fulfill(response=answer, body=text)

    async def has_caught_up() -> bool:
        """Whether the page was told that it may have missed changes, as each new page is."""
        return any(message["type"] == "topics.changed" for message in live.messages)

    await page.goto("/account/timeline")
    await is_live(page)
    await until(has_caught_up)
    await page.route("**/account/timeline", add_form)
    await page.locator("main").evaluate(
        "(main, form) => main.insertAdjacentHTML('beforeend', form)", FORM.format(number=0)
    )
    return page


async def is_refreshed(page: Page, before: int) -> None:
    """Wait until the region is newer than this one."""
    await page.wait_for_function(
        "before => Number(document.getElementById('number').textContent) > before", arg=before
    )


async def change(ada: Person) -> None:
    """Record an event about Ada."""
    async with ada.another_device() as other:
        await other.sign_in()


async def number(page: Page) -> int:
    return int(await page.locator("#number").inner_text())


async def test_new_rows_are_counted_and_shown_on_request(page: Page, ada: Person) -> None:
    rows = page.locator("main li.row")
    before = await rows.count()
    place = await rows.first.bounding_box()
    await change(ada)
    link = page.get_by_role("status").get_by_role("link")
    await expect(link).to_have_text("1 new")
    await change(ada)
    await expect(link).to_have_text("2 new")
    assert await rows.count() == before
    assert await rows.first.bounding_box() == place
    await link.press("Enter")
    await expect(rows).to_have_count(before + 2)
    await expect(link).to_have_count(0)
    await expect(page.locator("#activity")).to_be_focused()


async def test_rows_are_counted_that_arrive_while_the_link_is_used(page: Page, ada: Person) -> None:
    rows = page.locator("main li.row")
    before = await rows.count()
    await change(ada)
    link = page.get_by_role("status").get_by_role("link", name="1 new")
    await link.wait_for()
    fetched, released = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        answer = await route.fetch()
        fetched.set()
        await released.wait()
        await route.fulfill(response=answer)

    await page.route("**/account/timeline", hold, times=1)
    await change(ada)
    await fetched.wait()
    await link.press("Enter")
    await expect(rows).to_have_count(before + 1)
    released.set()
    await link.press("Enter")
    await expect(rows).to_have_count(before + 2)


async def test_a_row_that_is_shown_changes_in_place(
    server: Server, page: Page, ada: Person
) -> None:
    row = page.locator("main li.row", has_text="this session")
    await expect(row).to_have_count(1)
    async with ada.another_device() as other:
        await other.sign_in()
        await page.get_by_role("link", name="1 new").click()
        newest = page.locator("main li.row").first
        await expect(newest.locator(".on")).to_have_count(1)
        await other.post("/logout")
        await expect(newest.locator(".on")).to_have_count(0)


@pytest.mark.parametrize("use", ["focus", "details", "field"])
async def test_a_region_in_use_is_replaced_when_the_user_has_left_it(
    page: Page, ada: Person, use: str
) -> None:
    field, summary = page.get_by_label("Field"), page.locator("#form summary")
    if use == "focus":
        await page.get_by_role("button", name="Press").focus()
    elif use == "details":
        await summary.click()
    else:
        await field.fill("as typed")
    await page.locator("h1").click()
    if use == "focus":
        await page.get_by_role("button", name="Press").focus()
    before = await number(page)
    await change(ada)
    await expect(page.get_by_role("link", name="1 new")).to_be_visible()
    assert await number(page) == before
    if use == "details":
        await summary.click()
    elif use == "field":
        assert await field.input_value() == "as typed"
        await field.fill("as stored")
    await page.locator("h1").click()
    await page.evaluate("document.activeElement.blur()")
    await is_refreshed(page, before)
    await expect(field).to_have_value("as stored")


async def test_a_hidden_page_is_refreshed_when_it_is_shown(page: Page, ada: Person) -> None:
    await page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.away})")
    await page.evaluate("window.away = true")
    before = await number(page)
    await page.evaluate(TELL)
    await change(ada)
    await expect(page.locator("body#told")).to_have_count(1)
    assert await number(page) == before
    await page.evaluate("window.away = false")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await is_refreshed(page, before)


async def test_a_page_that_was_offline_shows_what_it_has_missed(page: Page, ada: Person) -> None:
    before = await number(page)
    await page.context.set_offline(True)
    await change(ada)
    assert await number(page) == before
    await page.context.set_offline(False)
    await is_live(page)
    await is_refreshed(page, before)


async def test_a_background_fetch_leaves_messages_for_the_next_page(
    page: Page, ada: Person
) -> None:
    """A message is shown once, on the page that the user opens."""
    await ada.post("/account/sessions/end-others", page="/account/sessions")
    shown = await ada.client.get("/account", headers={"X-Background": "1"})
    assert 'class="flash ' not in shown.text
    shown = await ada.get("/account")
    assert 'class="flash ' in shown.text
