"""Roles for a limited time, on the pages of administrators."""

import re
from datetime import datetime, timedelta

import pytest

from quartapp import clock
from quartapp.i18n.times import format_time
from quartapp.models import User
from tests.integration.routes.conftest import Visitor, Visitors, documents, role_named, user_named
from tests.people import until

GRANTS = "/admin/users/ada/grants"


async def expire(username: str, role: str) -> None:
    """Let the user's grant of the role expire now, by a write to the database."""
    end = {"role": (await role_named(role)).id, "until": clock.now()}
    await User.change({"username": username}, {"$set": {"role_ends": [end]}})


async def test_a_role_is_granted_for_a_limited_time(root: Visitor, ada: Visitor) -> None:
    answer = await root.post(GRANTS, role="moderator", until="2h")
    assert (answer.status, answer.location) == (303, "/admin/users/ada/roles")
    (end,) = (await user_named("ada")).role_ends
    assert timedelta(minutes=119) < end.until - clock.now() <= timedelta(hours=2)
    page = (await root.get("/admin/users/ada/roles")).text
    assert f"has the role moderator until {format_time(end.until)}" in page
    assert f'<time datetime="{end.until.isoformat(timespec="seconds")}"' in page
    me = await ada.me()
    assert me is not None
    assert "posts.moderate" in me["permissions"]
    notices = (await ada.get("/account/notices")).text
    assert f"root gave you the role moderator until {format_time(end.until)}." in notices


async def test_granting_again_tells_what_became_of_the_end(root: Visitor, ada: Visitor) -> None:
    async def told(until: str) -> str:
        assert (await root.post(GRANTS, role="moderator", until=until)).status == 303
        page = (await root.get("/account")).text
        (text,) = re.findall(r'<p class="flash [^>]*>(.*?)</p>', page, re.S)
        return text

    first, second = "2031-12-31T14:00Z", "2030-12-31T14:00Z"
    shown = [format_time(datetime.fromisoformat(text)) for text in (first, second)]
    assert [await told(until) for until in (first, first, second, "", "", first)] == [
        f"ada has the role moderator until {shown[0]}.",
        f"ada already has the role moderator until {shown[0]}.",
        f"ada had the role moderator, which now ends on {shown[1]}.",
        "ada keeps the role moderator, which no longer ends.",
        "ada already has the role moderator.",
        f"ada had the role moderator, which now ends on {shown[0]}.",
    ]
    ends = [datetime.fromisoformat(text) for text in (first, second)]
    events = await documents("events", **{"details.role": "moderator"})
    assert [
        (each["verb"], each["details"].get("until"), each["details"].get("end")) for each in events
    ] == [
        ("role.granted_until", ends[0], None),
        ("role.end_changed", ends[1], ends[0]),
        ("role.end_removed", None, ends[1]),
        ("role.end_changed", ends[0], None),
    ]


async def test_a_time_in_iso_8601_is_taken_as_utc(root: Visitor, ada: Visitor) -> None:
    typed = f"{clock.now() + timedelta(days=9):%Y-%m-%dT%H:%M}"
    assert (await root.post(GRANTS, role="moderator", until=typed)).status == 303
    (end,) = (await user_named("ada")).role_ends
    assert f"{end.until:%Y-%m-%dT%H:%M}" == typed


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("typed", ["soon", "0h", "30", "4000d", "2020-01-01", "9999-12-31"])
async def test_an_invalid_end_is_shown_again_as_typed(
    root: Visitor, ada: Visitor, typed: str, held: bool
) -> None:
    if held:
        await root.post(GRANTS, role="moderator")
    answer = await root.post(GRANTS, role="moderator", until=typed)
    assert answer.status == 422
    field = "until-moderator" if held else "until"
    assert re.search(rf'<input[^>]* id="{field}"[^>]* value="{typed}"', answer.text)
    assert f'id="{field}-error"' in answer.text
    assert (await user_named("ada")).role_ends == []


async def test_the_last_administrator_cannot_be_limited(root: Visitor) -> None:
    refused = await root.post("/admin/users/root/grants", role="admin", until="2h")
    assert refused.status == 422
    assert "last active administrator" in refused.text
    assert await root.me() is not None


async def test_a_running_worker_records_the_end(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    await root.post(GRANTS, role="moderator", until="2h")
    assert await ada.me() is not None
    await expire("ada", "moderator")

    async def is_on_record() -> bool:
        return bool(await documents("events", verb="role.revoked"))

    await until(is_on_record)
    (event,) = await documents("events", verb="role.revoked")
    assert event["actor"] is None
    assert await ada.me() is None
    assert "One of your roles has expired." in (await ada.get("/login")).text
    assert (await ada.sign_in()).status == 303
    assert "The role moderator expired</h2>" in (await ada.get("/account/timeline")).text
    page = re.sub(r"\s+", " ", (await root.get("/admin/users/ada/activity")).text)
    assert "expired</p>" in page
