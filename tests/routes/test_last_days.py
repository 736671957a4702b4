"""The last day of an account, on the pages (ASVS 7.4.2, 6.3.8, 2.2.1)."""

import re
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.models import User
from quartapp.runtime import runtime_of
from tests.people import until
from tests.routes.conftest import Town, Visitor, documents, the_user

PATH = "/admin/users/ada/last-day"


def ahead(days: int) -> str:
    return f"{clock.now() + timedelta(days=days):%Y-%m-%d}"


async def let_it_pass(town: Town, username: str) -> None:
    """Moves the end of somebody's last day to now, as a hand in the database does."""
    at = clock.now() - timedelta(milliseconds=1)
    await User.change({"username": username}, {"$set": {"closes_at": at}})
    await runtime_of(town.app).barrier.passed()


async def test_a_last_day_is_shown_to_those_it_concerns_until_it_is_taken_back(
    town: Town, root: Visitor, ada: Visitor
) -> None:
    day = clock.now().date() + timedelta(days=30)
    words = f"{day.day} {day:%b %Y}"
    answer = await root.post(PATH, date=day.isoformat())
    assert (answer.status, answer.location) == (303, "/admin/users/ada")
    page = await root.get("/admin/users/ada")
    assert f"expires at the end of {day} (UTC)" in page.text
    # The field that changes it, and the hidden one of the button that removes it.
    dates = re.findall(r'<input[^>]* name="date"[^>]* value="([^"]*)"', page.text)
    assert dates == [day.isoformat(), ""]
    assert words in page.text
    assert words in (await root.get("/admin/users")).text
    assert words in (await ada.get("/account")).text
    assert f"root set your last day: {day}" in (await ada.get("/account/notices")).text
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
async def test_what_is_no_possible_day_comes_back_as_it_was_typed(
    root: Visitor, ada: Visitor, typed: str
) -> None:
    typed = ahead(-1) if typed == "-1" else typed
    answer = await root.post(PATH, date=typed)
    assert answer.status == 422
    assert answer.error("date")
    assert answer.fields["date"] == typed.replace("\0", "\ufffd") or typed == "\0"
    assert (await the_user("ada")).closes_at is None


async def test_today_is_a_last_day_and_goes_on_until_it_is_over(
    root: Visitor, ada: Visitor
) -> None:
    assert (await root.post(PATH, date=ahead(0))).status == 303
    assert await ada.me() is not None


async def test_when_the_day_is_over_nobody_comes_in_whether_anybody_has_noticed_or_not(
    town: Town, root: Visitor, ada: Visitor
) -> None:
    await runtime_of(town.app).account_expiry.stop()
    await let_it_pass(town, "ada")
    assert await ada.me() is None
    for _ in range(2):
        assert "Your account has expired." in (await ada.get("/login")).text
    refused = await ada.another_device().sign_in()
    assert refused.status == 403
    assert "Your account expired" in refused.text
    assert "disabled" in (await root.get("/admin/users/ada")).text
    assert "disabled" in (await root.get("/admin/users")).text
    link = await town.nobody().post("/forgot", email="ada@example.org")
    assert link.status == 303
    await town.no_more_letters()
    assert await documents("tokens", purpose="reset") == []
    assert (await the_user("ada")).disabled_at is None
    # Enabling is enough, and needs nobody to have put the closing on record.
    assert (await root.post("/admin/users/ada/enable")).status == 303
    assert "is enabled" in (await root.get("/admin/users/ada")).text
    assert (await ada.sign_in()).status == 303
    await root.post("/admin/users/ada/enable")
    assert "Nothing was changed" in (await root.get("/admin/users/ada")).text


async def test_the_closing_is_put_on_record_by_whatever_is_up(
    town: Town, root: Visitor, ada: Visitor
) -> None:
    await let_it_pass(town, "ada")

    async def is_on_record() -> bool:
        return bool(await documents("events", verb="user.disabled"))

    await until(is_on_record)
    (event,) = await documents("events", verb="user.disabled")
    assert (event["actor"], event["details"].keys()) == (None, {"last_day"})
    assert (await the_user("ada")).disabled_at is not None
    assert await ada.me() is None
    assert "Your account has expired." in (await ada.get("/login")).text
    page = re.sub(r"\s+", " ", (await root.get("/admin/users/ada")).text)
    assert "Enable account" in page
    assert ">the system<" in page
    assert (await root.post("/admin/users/ada/enable")).status == 303
    await ada.sign_in()
    told = await ada.get("/account/timeline")
    assert "The account was disabled, for its last day was over</h2>" in told.text


async def test_the_last_administrator_without_a_last_day_keeps_none(
    town: Town, root: Visitor
) -> None:
    answer = await root.post("/admin/users/root/last-day", date=ahead(9))
    assert answer.status == 422
    assert "last active administrator" in answer.error("date")
    assert answer.fields["date"] == ahead(9)
    grace = await town.admin("grace")
    assert (await grace.post("/admin/users/root/last-day", date=ahead(9))).status == 303
    for path, fields in (
        ("/admin/users/grace/last-day", {"date": ahead(1)}),
        ("/admin/users/grace/disable", {}),
        ("/admin/users/grace/grants/admin/revoke", {}),
    ):
        refused = await root.post(path, **fields)
        assert refused.status == 422
        assert "The accounts of all other administrators expire" in refused.text
    assert await grace.me() is not None


async def test_the_last_administrator_stays_though_a_hand_in_the_database_said_otherwise(
    town: Town, root: Visitor
) -> None:
    await let_it_pass(town, "root")

    async def is_kept() -> bool:
        return bool(await documents("events", verb="last_day.lifted"))

    await until(is_kept)
    assert (await root.sign_in()).status == 303
    told = (await root.get("/account/timeline")).text
    assert "its last day would have left no administrator</h2>" in told
