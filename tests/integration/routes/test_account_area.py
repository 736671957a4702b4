"""The pages of the settings area: profile, preferences, security, sessions and data."""

from __future__ import annotations

import re

import pytest

from quartapp.i18n import LOCALES
from quartapp.models import Comment, Post, Session, User
from quartapp.models.base.actor import Actor
from tests.integration.routes.conftest import Visitor, Visitors, role_named, user_named
from tests.people import until

AREA = (
    *("/account", "/account/profile", "/account/security", "/account/sessions"),
    *(
        "/account/roles",
        "/account/notices",
        "/account/timeline",
        "/account/export",
        "/account/preferences",
    ),
)
HOSTILE = "<script>alert(1)</script>"


@pytest.mark.parametrize("path", [*AREA, "/account/factors"])
async def test_each_page_of_the_area_marks_itself_in_the_navigation(
    ada: Visitor, path: str
) -> None:
    page = await ada.get(path)
    nav = page.text[page.text.index('<nav class="side-nav"') :].partition("</nav>")[0]
    assert tuple(re.findall(r'<a href="([^"]+)"', nav)) == tuple(dict.fromkeys(AREA))
    expected = "/account/security" if path == "/account/factors" else path
    assert re.findall(r'<a href="([^"]+)" aria-current="page"', nav) == [expected]


async def test_a_profile_is_shown_beside_the_username(ada: Visitor, root: Visitor) -> None:
    answer = await ada.post(
        "/account/profile", display_name=" Ada  <L> ", about="Hello\n" + HOSTILE
    )
    assert (answer.status, answer.location) == (303, "/account/profile")
    assert "Your profile was saved." in (await ada.get("/account/profile")).text
    page = (await root.get("/users/ada")).text
    assert "<span>ada</span></h1>" in page
    assert "Ada &lt;L&gt;</p>" in page
    assert "&lt;script&gt;" in page
    assert HOSTILE not in page
    user = await user_named("ada")
    assert (user.display_name, user.about) == ("Ada <L>", f"Hello\n{HOSTILE}")


async def test_a_profile_can_be_emptied(ada: Visitor) -> None:
    await ada.post("/account/profile", display_name="Ada", about="Hello")
    await ada.post("/account/profile", display_name="", about="")
    user = await user_named("ada")
    assert (user.display_name, user.about) == ("", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("display_name", "x" * 51), ("display_name", "a\u202eb"), ("display_name", "a\0b")],
        *[("about", "x" * 281), ("about", "a\x1bb"), ("about", "a\u2066b")],
    ],
)
async def test_a_refused_profile_keeps_what_was_typed(ada: Visitor, field: str, value: str) -> None:
    fields = {"display_name": "Ada L.", "about": "Hello"} | {field: value}
    answer = await ada.post("/account/profile", **fields)
    assert answer.status == 422
    assert answer.error(field)
    other = "about" if field == "display_name" else "display_name"
    assert answer.fields[other] == fields[other]
    assert (await user_named("ada")).display_name == ""


async def test_preferences_apply_to_the_next_page(ada: Visitor) -> None:
    answer = await ada.post(
        "/account/preferences",
        language="de",
        timezone="Asia/Tokyo",
        theme="dark",
        emailed=["posts"],
    )
    assert (answer.status, answer.location) == (303, "/account/preferences")
    page = (await ada.get("/account/preferences")).text
    assert '<html lang="de" data-theme="dark">' in page
    assert '<meta name="color-scheme" content="dark">' in page
    assert 'id="zone">Asia/Tokyo<' in page
    assert '<option selected value="de">' in page
    assert '<option selected value="Asia/Tokyo">Tokyo</option>' in page
    assert (await user_named("ada")).preferences.emailed == ["posts"]
    await ada.post("/account/preferences", language="", timezone="", theme="")
    page = (await ada.get("/account/preferences", headers={"Accept-Language": "en"})).text
    assert '<html lang="en" data-zone="UTC" ' in page
    assert (await user_named("ada")).preferences.emailed == []


async def test_preferences_reach_the_other_sessions_of_the_user(ada: Visitor) -> None:
    phone = ada.another_device()
    await phone.sign_in()
    assert 'data-theme="dark"' not in (await phone.get("/account")).text
    await ada.post("/account/preferences", theme="dark")

    async def is_dark() -> bool:
        return 'data-theme="dark"' in (await phone.get("/account")).text

    await until(is_dark)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("language", "xx"), ("timezone", "Mars/Base"), ("timezone", "../../etc/passwd")],
        *[("theme", "purple"), ("emailed", "security")],
    ],
)
async def test_an_unknown_preference_is_refused(ada: Visitor, field: str, value: str) -> None:
    answer = await ada.post("/account/preferences", **{field: value})
    assert answer.status == 422
    assert answer.error(field)
    assert (await user_named("ada")).preferences.model_dump(exclude_defaults=True) == {}


async def test_preferences_offer_the_browsers_zone_and_all_languages(ada: Visitor) -> None:
    ada.client.set_cookie("localhost", "timezone", "America/New_York")
    page = (await ada.get("/account/preferences")).text
    assert "The browser&#39;s time zone (America/New_York)</option>" in page
    for code, name in LOCALES.items():
        assert f'<option value="{code}">{name}</option>' in page


async def test_a_stored_zone_that_is_not_offered_stays_selected(ada: Visitor) -> None:
    await ada.post("/account/preferences", timezone="US/Eastern")
    page = (await ada.get("/account/preferences")).text
    assert '<option selected value="US/Eastern">US/Eastern</option>' in page


async def test_emails_about_requests_are_offered_to_those_who_decide(
    ada: Visitor, root: Visitor
) -> None:
    assert 'value="requests"' not in (await ada.get("/account/preferences")).text
    assert 'value="requests"' in (await root.get("/account/preferences")).text


async def test_a_chosen_group_of_notifications_is_also_emailed(
    visitors: Visitors, ada: Visitor
) -> None:
    user, bob = await user_named("ada"), await visitors.account("bob")
    await User.change({"_id": user.id}, {"$set": {"email_verified_at": user.created_at}})
    post = await Post.write("On engines", "text", by=Actor(user.id, "ada"))
    await Comment.write(post, "First", by=Actor(bob.id, "bob"))
    await ada.post("/account/preferences", emailed="posts")
    await (await user_named("ada")).grant(await role_named("moderator"), by=Actor(None, "root"))
    await Comment.write(post, "Second", by=Actor((await visitors.account("eve")).id, "eve"))
    (text,) = await visitors.emails(user.email, "New notification")
    assert text.startswith("eve commented on “On engines”.\n")
    assert "/account/preferences" in text


async def test_sessions_show_the_device_and_whether_it_is_active(ada: Visitor) -> None:
    sessions = await Session.of_user((await user_named("ada")).id)
    await Session.change({"_id": sessions[0].id}, {"$set": {"device": "Chrome Mobile on Android"}})
    page = (await ada.get("/account/sessions")).text
    assert "#phone" in page
    assert "this device" in page
    assert "active now" in page
