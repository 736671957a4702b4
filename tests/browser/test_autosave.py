"""The draft of a post is saved on the server while its author types."""

from __future__ import annotations

from playwright.async_api import Page, Request, expect

from tests.browser.conftest import is_live

HIDE = """() => {
  Object.defineProperty(document, "hidden", {get: () => true})
  dispatchEvent(new Event("visibilitychange"))
}"""


async def open_editor(page: Page) -> Page:
    """Open the form of a new post, with a clock that stands still."""
    await page.clock.install()
    await page.goto("/posts/new")
    await is_live(page)
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 1"))
    return page


async def test_a_post_is_saved_while_it_is_typed_unless_another_tab_has_a_newer_draft(
    page: Page,
) -> None:
    sent: list[Request] = []
    page.context.on("request", lambda each: sent.append(each) if each.method == "POST" else None)
    state, text = page.locator("#draft p"), page.get_by_label("Text")
    await open_editor(page)
    discard = page.get_by_role("button", name="Discard draft")
    await expect(discard).to_be_hidden()
    await page.get_by_label("Title").fill("A title")
    await text.fill("One")
    await page.clock.run_for(2_900)
    assert sent == []
    await page.clock.run_for(200)
    await expect(state).to_contain_text("Draft saved")
    await expect(discard).to_be_visible()
    assert [each.headers.get("x-background") for each in sent] == ["1"]
    # This tab keeps only what the server does not have.
    assert await page.evaluate("Object.keys(sessionStorage).join()") == await page.evaluate(
        "`cursor:${user}`"
    )

    # A page that is hidden does not wait.
    other = await open_editor(await page.context.new_page())
    await expect(other.get_by_label("Text")).to_have_value("One")
    await other.get_by_label("Text").fill("One, two")
    async with other.expect_response("**/posts/new/draft") as answer:
        await other.evaluate(HIDE)
    assert (await answer.value).status == 200

    await text.fill("One, three")
    await page.clock.run_for(3_100)
    await expect(state).to_contain_text("saved, published or discarded elsewhere")
    await expect(text).to_have_value("One, three")
    before = len(sent)
    await text.fill("One, three, four")
    await page.clock.run_for(3_100)
    await page.reload()
    assert len(sent) == before
    note = page.locator(".draft-note")
    await expect(text).to_have_value("One, two")
    await page.clock.run_for(100)
    await expect(note).to_contain_text("This form has changed since then.")
    await note.get_by_role("button", name="Restore").click()
    await expect(text).to_have_value("One, three, four")


async def test_a_page_says_that_its_draft_could_not_be_saved(page: Page) -> None:
    await open_editor(page)
    state = page.locator("#draft p")
    await page.context.set_offline(True)
    await page.get_by_label("Title").fill("A title")
    await page.clock.run_for(3_100)
    await expect(state).to_contain_text("could not be saved on the server")
    await page.context.set_offline(False)
    await page.get_by_label("Text").fill("Some text")
    await page.clock.run_for(3_100)
    await expect(state).to_contain_text("Draft saved")
