"""The expiry date of an account, on the pages (ASVS 7.4.2, 6.3.8, 2.2.1)."""

import re
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.i18n.times import format_day
from quartapp.models import User
from quartapp.runtime import runtime_of
from tests.integration.routes.conftest import Visitor, Visitors, documents, user_named
from tests.people import until

PATH = "/admin/users/ada/last-day"


def ahead(days: int) -> str:
    return f"{clock.now() + timedelta(days=days):%Y-%m-%d}"


async def expire(visitors: Visitors, username: str) -> None:
    """Let an account expire now, by a write to the database."""
    at = clock.now() - timedelta(milliseconds=1)
    await User.change({"username": username}, {"$set": {"closes_at": at}})
    await runtime_of(visitors.app).barrier.wait()


async def test_an_expiry_date_is_shown_until_it_is_removed(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    day = clock.now().date() + timedelta(days=30)
    words = f"{day.day} {day:%b %Y}"
    answer = await root.post(PATH, date=day.isoformat())
    assert (answer.status, answer.location) == (303, "/admin/users/ada")
    page = await root.get("/admin/users/ada")
    assert f"expires at the end of {format_day(day)} (UTC)" in page.text
    # The field that changes it, and the hidden one of the button that removes it.
    dates = re.findall(r'<input[^>]* name="date"[^>]* value="([^"]*)"', page.text)
    assert dates == [day.isoformat(), ""]
    assert words in page.text
    assert words in (await root.get("/admin/users")).text
    assert words in (await ada.get("/account")).text
    assert f"it is disabled at the end of {day}" in (await ada.get("/account/notices")).text
    assert (await root.post(PATH, date=day.isoformat())).status == 303
    assert "Nothing was changed" in (await root.get("/admin/users/ada")).text
    assert (await root.post(PATH, date="")).status == 303
    for place in ("/admin/users/ada", "/admin/users"):
        assert words not in (await root.get(place)).text.partition("Audit log</h2>")[0]
    assert words not in (await ada.get("/account")).text
    assert await ada.me() is not None
    verbs = [event["verb"] for event in await documents("events")]
    assert verbs[-2:] == ["last_day.set", "last_day.lifted"]


@pytest.mark.parametrize(
    "typed", ["yesterday", "2030-13-01", "31.12.2030", "9999-12-31", "0001-01-01", "\0", "-1"]
)
async def test_an_invalid_expiry_date_is_shown_again_as_typed(
    root: Visitor, ada: Visitor, typed: str
) -> None:
    typed = ahead(-1) if typed == "-1" else typed
    answer = await root.post(PATH, date=typed)
    assert answer.status == 422
    assert answer.error("date")
    assert answer.fields["date"] == typed.replace("\0", "\ufffd") or typed == "\0"
    assert (await user_named("ada")).closes_at is None


async def test_an_account_that_expires_today_is_usable_today(root: Visitor, ada: Visitor) -> None:
    assert (await root.post(PATH, date=ahead(0))).status == 303
    assert await ada.me() is not None


async def test_an_expired_account_cannot_sign_in(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    await runtime_of(visitors.app).account_expiry.stop()
    await expire(visitors, "ada")
    assert await ada.me() is None
    for _ in range(2):
        assert "Your account has expired." in (await ada.get("/login")).text
    refused = await ada.another_device().sign_in()
    assert refused.status == 403
    assert "Your account expired" in refused.text
    assert "disabled" in (await root.get("/admin/users/ada")).text
    assert "disabled" in (await root.get("/admin/users")).text
    link = await visitors.anonymous().post("/forgot", email="ada@example.org")
    assert link.status == 303
    await visitors.wait_for_outbox()
    assert await documents("tokens", purpose="reset") == []
    assert (await user_named("ada")).disabled_at is None
    # Enabling works before a worker has recorded the expiry, too.
    assert (await root.post("/admin/users/ada/enable")).status == 303
    assert "is enabled" in (await root.get("/admin/users/ada")).text
    assert (await ada.sign_in()).status == 303
    await root.post("/admin/users/ada/enable")
    assert "Nothing was changed" in (await root.get("/admin/users/ada")).text


async def test_a_running_worker_records_the_expiry(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    await expire(visitors, "ada")

    async def is_on_record() -> bool:
        return bool(await documents("events", verb="user.disabled"))

    await until(is_on_record)
    (event,) = await documents("events", verb="user.disabled")
    assert (event["actor"], event["details"].keys()) == (None, {"last_day"})
    assert (await user_named("ada")).disabled_at is not None
    assert await ada.me() is None
    assert "Your account has expired." in (await ada.get("/login")).text
    page = re.sub(r"\s+", " ", (await root.get("/admin/users/ada")).text)
    assert "Enable account" in page
    log = re.sub(r"\s+", " ", (await root.get("/admin/users/ada/activity")).text)
    assert "expired and was disabled" in log
    assert (await root.post("/admin/users/ada/enable")).status == 303
    await ada.sign_in()
    told = await ada.get("/account/timeline")
    assert "The account was disabled because it expired</h2>" in told.text


async def test_the_last_lasting_administrator_cannot_get_an_expiry_date(
    visitors: Visitors, root: Visitor
) -> None:
    answer = await root.post("/admin/users/root/last-day", date=ahead(9))
    assert answer.status == 422
    assert "last active administrator" in answer.error("date")
    assert answer.fields["date"] == ahead(9)
    grace = await visitors.admin("grace")
    assert (await grace.post("/admin/users/root/last-day", date=ahead(9))).status == 303
    for path, fields in (
        ("/admin/users/grace/last-day", {"date": ahead(1)}),
        ("/admin/users/grace/disable", {}),
        ("/admin/users/grace/grants/admin/revoke", {}),
    ):
        refused = await root.post(path, **fields)
        assert refused.status == 422
        assert "The accounts or roles of all other administrators expire" in refused.text
    assert await grace.me() is not None


async def test_the_last_administrator_never_expires_by_a_database_edit(
    visitors: Visitors, root: Visitor
) -> None:
    await expire(visitors, "root")

    async def is_kept() -> bool:
        return bool(await documents("events", verb="last_day.lifted"))

    await until(is_kept)
    assert (await root.sign_in()).status == 303
    told = (await root.get("/account/timeline")).text
    assert "because no other administrator would be left</h2>" in told
