"""Times on pages: in the zone that the user has stored or the browser has told, else in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from quartapp.models import Post, User
from quartapp.models.accounts.preferences import Preferences
from quartapp.models.accounts.profile import change_preferences
from quartapp.models.base.actor import SYSTEM, Actor
from tests.integration.routes.conftest import Answer, Visitor, user_named
from tests.people import until


async def shown(visitor: Visitor, cookie: str | None = None) -> Answer:
    """Return a page with times as the server sends it."""
    if cookie is not None:
        visitor.client.set_cookie("localhost", "timezone", cookie)
    return await visitor.get("/users/ada")


@pytest.fixture(autouse=True)
async def early(ada: Visitor) -> None:
    """Let Ada's account and one of her posts be from a time at which the zones differ in the
    date."""
    at = datetime(2026, 3, 3, 4, 5, 9, tzinfo=UTC)
    user = await user_named("ada")
    post = await Post.write("On engines", "text", by=Actor(user.id, "ada"))
    for model, of in ((User, user.id), (Post, post.id)):
        await model.change({"_id": of}, {"$set": {"created_at": at}})


async def test_without_a_known_zone_times_are_in_utc(ada: Visitor) -> None:
    page = await shown(ada)
    assert ">3 Mar 2026, 04:05 UTC</time>" in page.text
    assert 'data-zone="UTC"' in page.text
    assert 'All times are in <span id="zone">UTC</span>' in page.text


async def test_times_are_in_the_zone_of_the_browsers_cookie(ada: Visitor) -> None:
    page = await shown(ada, "America/New_York")
    assert 'data-zone="America/New_York"' in page.text
    moment, date = re.findall(r"<time [^>]*2026-03[^>]*>[^<]*</time>", page.text)
    exact = 'datetime="2026-03-03T04:05:09+00:00" title="3 Mar 2026, 04:05:09 UTC"'
    assert moment == f'<time {exact} data-shown="time">2 Mar 2026, 23:05</time>'
    assert date == f'<time {exact} data-shown="date">2 Mar 2026</time>'


@pytest.mark.parametrize("cookie", ["Mars/Base", "../../etc/passwd", "", "%00", "x" * 3000, "é"])
async def test_a_cookie_that_names_no_zone_is_ignored(ada: Visitor, cookie: str) -> None:
    assert 'data-zone="UTC"' in (await shown(ada, cookie)).text


async def test_the_stored_zone_precedes_that_of_the_browser(ada: Visitor) -> None:
    wished = Preferences(timezone="Asia/Tokyo")
    await change_preferences((await user_named("ada")).id, wished, by=SYSTEM)

    async def is_applied() -> bool:
        return "3 Mar 2026, 13:05</time>" in (await shown(ada, "America/New_York")).text

    await until(is_applied)
    page = await shown(ada)
    assert '<span id="zone">Asia/Tokyo</span>' in page.text
    assert "timezone.js" not in page.text


async def test_visitors_see_times_in_the_zone_of_their_browser(ada: Visitor) -> None:
    visitor = Visitor(ada.app)
    visitor.client.set_cookie("localhost", "timezone", "Asia/Tokyo")
    (path,) = {each for each in (await visitor.get("/posts")).links if "/posts/" in each}
    assert "3 Mar 2026, 13:05</time>" in (await visitor.get(path)).text
