"""Passkeys: adding, renaming and removing them, and signing in with them."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from playwright.async_api import Page, expect

from tests.browser.conftest import NewBrowser, is_live, register, submit
from tests.people import Server

HOME = "/account/factors/passkeys"

# The sign-in page asks for a passkey that the user can choose among the suggestions of the username
# field. A virtual authenticator answers at once, so a test that signs in by other means leaves this
# request unanswered. As in a browser, a second request fails as long as the first one is pending.
UNANSWERED_SUGGESTIONS = """
const get = navigator.credentials?.get.bind(navigator.credentials)
let pending = false
if (get) navigator.credentials.get = options => {
  if (options.mediation !== "conditional") {
    return pending ? Promise.reject(new Error("pending")) : get(options)
  }
  return new Promise((_, reject) => {
    const { signal } = options
    const end = () => { pending = false; reject(signal.reason) }
    if (signal.aborted) return end()
    pending = true
    signal.addEventListener("abort", end)
  })
}
"""


def url_with_host_name(server: Server) -> str:
    """Return the URL of the server with a host name, which passkeys need."""
    return f"http://localhost:{urlsplit(server.url).port}"


async def add_authenticator(page: Page) -> None:
    """Add a virtual authenticator to the browser that creates passkeys and verifies its user."""
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("WebAuthn.enable", {"enableUI": False})
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    await devtools.send("WebAuthn.addVirtualAuthenticator", {"options": options})


async def add(page: Page, name: str) -> None:
    await page.get_by_label("Name", exact=True).fill(name)
    await page.get_by_role("button", name="Add a passkey").click()


async def test_a_passkey_from_creation_to_removal(server: Server, new_browser: NewBrowser) -> None:
    context = await new_browser(url_with_host_name(server))
    await context.add_init_script(UNANSWERED_SUGGESTIONS)
    page = await context.new_page()
    await add_authenticator(page)
    name = f"ada-{secrets.token_hex(4)}"
    await register(page, name)

    await page.goto(HOME)
    await expect(page.get_by_label("Name", exact=True)).to_have_value("HeadlessChrome on Linux")
    await add(page, "Laptop")
    await expect(page.locator(".flash")).to_contain_text("The passkey “Laptop” was added.")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Recovery codes")
    await page.goto(HOME)
    await expect(page.get_by_role("heading", name="Laptop")).to_be_visible()
    # The same authenticator does not create a second passkey.
    await add(page, "Again")
    await expect(page.get_by_role("alert")).to_contain_text("already has a passkey")
    await page.get_by_text("Rename").first.click()
    await page.get_by_label("New name").fill("My laptop")
    await page.locator(".rename .grant-form button").click()
    await expect(page.get_by_role("heading", name="My laptop")).to_be_visible()

    # Sign out, and sign in again without typing anything.
    await page.locator(".account-button").click()
    await page.get_by_role("button", name="Sign out").click()
    await page.goto(f"/login?next={HOME}")
    await page.get_by_label("Keep me signed in").check()
    await page.get_by_role("button", name="Sign in with a passkey").click()
    await page.wait_for_url(lambda url: urlsplit(url).path == HOME)
    await is_live(page)
    assert any(
        cookie.get("name") == "quartapp_session" and cookie.get("expires", -1) > 0
        for cookie in await context.cookies()
    )

    await page.get_by_text("Remove").first.click()
    await page.locator(".confirm-box button").click()
    await expect(page.locator(".flash")).to_contain_text("can no longer be used to sign in")
    await context.clear_cookies()

    # The authenticator still has the passkey, but the server refuses it.
    await page.goto("/login")
    await page.get_by_role("button", name="Sign in with a passkey").click()
    await expect(page.get_by_role("alert").first).to_contain_text("was not accepted")


async def test_a_passkey_as_second_factor(server: Server, new_browser: NewBrowser) -> None:
    context = await new_browser(url_with_host_name(server))
    await context.add_init_script(UNANSWERED_SUGGESTIONS)
    page = await context.new_page()
    await add_authenticator(page)
    name = f"ada-{secrets.token_hex(4)}"
    await register(page, name)
    await page.goto(HOME)
    await add(page, "Phone")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Recovery codes")
    await context.clear_cookies()

    await page.goto("/login?next=/posts")
    await page.get_by_label("Username or email address").fill(name)
    await page.get_by_label("Password", exact=True).fill("correct horse battery staple")
    await submit(page)
    await page.wait_for_url(lambda url: "/login/factor" in url)
    await page.get_by_role("button", name="Use a passkey").click()
    await page.wait_for_url(lambda url: urlsplit(url).path == "/posts")
    await is_live(page)


async def test_a_suggested_passkey_signs_in(server: Server, new_browser: NewBrowser) -> None:
    context = await new_browser(url_with_host_name(server))
    page = await context.new_page()
    await add_authenticator(page)
    await register(page, f"ada-{secrets.token_hex(4)}")
    await page.goto(HOME)
    await add(page, "Phone")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Recovery codes")
    await context.clear_cookies()

    # The virtual authenticator stands for the user who chooses the suggestion.
    await page.goto("/login?next=/posts", wait_until="commit")
    await page.wait_for_url(lambda url: urlsplit(url).path == "/posts")
    await is_live(page)


async def test_pages_explain_where_passkeys_are_not_available(
    server: Server, new_browser: NewBrowser
) -> None:
    page = await (await new_browser(url_with_host_name(server))).new_page()
    await page.add_init_script("delete window.PublicKeyCredential?.parseRequestOptionsFromJSON")
    await register(page, f"ada-{secrets.token_hex(4)}")
    await page.goto(HOME)
    await expect(page.get_by_text("This browser does not support passkeys.")).to_be_visible()
    await expect(page.get_by_role("button", name="Add a passkey")).to_be_hidden()

    page = await (
        await new_browser(url_with_host_name(server), java_script_enabled=False)
    ).new_page()
    await page.goto("/login")
    await expect(page.get_by_role("button", name="Sign in with a passkey")).to_be_hidden()
    await register(page, f"ada-{secrets.token_hex(4)}")
    await page.goto(HOME)
    await expect(page.get_by_text("Turn on JavaScript")).to_be_visible()

    # At an IP address, the page links to the host name at which passkeys work.
    page = await (await new_browser(server.url)).new_page()
    await page.goto("/login")
    link = page.get_by_role("link", name=url_with_host_name(server))
    await expect(link).to_have_attribute("href", f"{url_with_host_name(server)}/login")
