"""Sensitive forms ask for the password again after some time, and are then carried out."""

from __future__ import annotations

import secrets
from datetime import timedelta

from beanie import PydanticObjectId
from playwright.async_api import Page, expect

from quartapp import clock
from tests.browser.conftest import Live, NewBrowser, is_live, sign_in, submit
from tests.conftest import PASSWORD
from tests.people import Person, Server, until


async def make_stale(server: Server, page: Page) -> None:
    """Set the last authentication an hour back, and wait until the workers ask for the password."""
    session = PydanticObjectId(await page.locator("body").get_attribute("data-session"))
    async with server.database() as database:
        await database.sessions.update_one(
            {"_id": session}, {"$set": {"confirmed_at": clock.now() - timedelta(hours=1)}}
        )

    async def is_stale() -> bool:
        # A role without a name is never created. Only a stale session is asked for the password.
        token = await page.locator("input[name=csrf_token]").first.get_attribute("value")
        answer = await page.request.post(
            "/admin/roles/new", form={"csrf_token": token or ""}, headers={"Origin": server.url}
        )
        return "Confirm that it is you" in await answer.text()

    for _ in range(5):
        await until(is_stale)


async def fill_role_form(page: Page, name: str) -> None:
    await page.goto("/admin/roles/new")
    await page.get_by_label("Name").fill(name)
    await page.get_by_label("Description").fill("Waters the plants & “talks” to them.")
    await page.get_by_label("Write posts and comments").check()
    await page.get_by_label("Read the audit log").check()


async def test_reauthenticating_resumes_the_interrupted_form(
    server: Server, new_browser: NewBrowser
) -> None:
    page = await (await new_browser(server.url)).new_page()
    await sign_in(page, "root")
    other = await page.context.new_page()
    live = Live(other)
    await other.goto("/posts")
    await is_live(other)
    await make_stale(server, page)

    name = f"gardener-{secrets.token_hex(4)}"
    await fill_role_form(page, name)
    await submit(page)
    await expect(page.get_by_role("heading", level=1)).to_have_text("Confirm that it is you")

    await page.get_by_label("Password", exact=True).fill("not this one")
    await submit(page)
    await expect(page.get_by_label("Password", exact=True)).to_have_accessible_description(
        "The password of root. Incorrect password."
    )
    await expect(page.get_by_label("Password", exact=True)).to_have_value("")

    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await submit(page)
    await expect(page.locator(".flash")).to_contain_text(f"The role {name} was created.")
    await page.goto(f"/admin/roles/{name}")
    await expect(page.get_by_label("Description")).to_have_value(
        "Waters the plants & “talks” to them."
    )
    await expect(page.get_by_label("Read the audit log")).to_be_checked()
    await expect(page.get_by_label("Create, change and delete roles")).not_to_be_checked()

    # The other tab has not been locked, and the next form does not ask for the password.
    await expect(other.get_by_role("alertdialog")).to_be_hidden()
    assert [message["type"] for message in live.messages].count("session.ended") == 0
    await other.goto("/account")
    await is_live(other)
    await page.get_by_role("link", name="Delete role…").click()
    await page.get_by_role("button", name="Delete role").click()
    await expect(page.locator(".flash")).to_contain_text("was deleted")


async def test_reauthentication_works_without_javascript(
    server: Server, new_browser: NewBrowser, ada: Person
) -> None:
    context = await new_browser(server.url, java_script_enabled=False)
    page = await context.new_page()
    await sign_in(page, "root")
    await page.goto("/admin/roles")
    await make_stale(server, page)
    await page.goto(f"/admin/users/{ada.username}/roles")
    await page.get_by_label("Role", exact=True).select_option("moderator")
    await page.locator(".grant-asks summary").click()
    await page.get_by_role("button", name="Grant role", exact=True).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Confirm that it is you")
    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await submit(page)
    await expect(page.locator(".flash")).to_contain_text("now has the role moderator")
    assert page.url.endswith(f"/admin/users/{ada.username}/roles")


async def test_rate_limited_sign_ins_show_the_wait_and_keep_the_username(
    server: Server, new_browser: NewBrowser, ada: Person
) -> None:
    page = await (await new_browser(server.url)).new_page()
    await page.goto("/login")
    # The first waits are short, and may be over before a slow browser sends the next form.
    alert = page.get_by_role("alert")
    for _ in range(12):
        await page.get_by_label("Username or email address").fill(ada.username)
        await page.get_by_label("Password", exact=True).fill("something else altogether")
        async with page.expect_navigation():
            await submit(page)
        if "Try again in" in await alert.inner_text():
            break
    await expect(alert).to_contain_text("Try again in")
    await expect(page.get_by_label("Username or email address")).to_have_value(ada.username)
    # The account owner signs in from a known browser, which is not limited.
    await ada.post("/logout")
    await ada.sign_in()
