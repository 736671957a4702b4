"""A forgotten password (ASVS 6.3.8, 6.4.3, 2.3.4, 3.4.5)."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from quartapp import clock
from quartapp.models import Token, User
from quartapp.models.accounts.one_time_token import Purpose
from quartapp.models.base.actor import NOBODY
from quartapp.models.sessions.opening import is_known_browser
from quartapp.runtime import runtime_of
from tests.conftest import PASSWORD
from tests.models.helpers import NOTHING, only_accepting
from tests.routes.authenticator import set_up
from tests.routes.conftest import Answer, Open, Town, Visitor, documents, link_in, the_user
from tests.routes.scenes import add_passkey, options
from tests.security_key import Authenticator

NEW = "quite another horse and battery"


async def a_link(town: Town, email: str = "ada@example.org") -> str:
    answer = await town.nobody().post("/forgot", email=email)
    assert (answer.status, answer.location) == (303, "/forgot/sent")
    await town.no_more_letters()
    return link_in((await town.letters("ada@example.org", "Set a new password"))[0])


async def set_password(visitor: Visitor, link: str, password: str = NEW) -> Answer:
    return await visitor.post(link, password=password, confirm=password)


async def test_the_link_sets_a_password_ends_all_sessions_and_signs_nobody_in(
    town: Town, ada: Visitor
) -> None:
    await ada.post("/account/email", email="eve@example.org")
    link, nobody = await a_link(town, "ADA@example.org"), town.nobody()
    page = await nobody.get(link)
    assert page.status == 200
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-store"
    answer = await set_password(nobody, link)
    assert (answer.status, answer.location) == (303, "/login")
    assert await nobody.me() is None
    assert await ada.me() is None
    assert "password" in (await ada.get("/login")).text
    (over,) = await documents("sessions")
    assert over["ended_reason"] == "password_changed"
    assert (await ada.sign_in(password=PASSWORD)).status == 422
    assert (await ada.sign_in(password=NEW)).status == 303
    user = await the_user("ada")
    assert user.email_verified_at is not None
    assert user.pending_email is None, "whoever was signed in may have asked for it"
    (told,) = await town.letters("ada@example.org", "Your password was changed")
    assert "/forgot" in told
    (event,) = await documents("events", verb="password.reset")
    assert over["ended_event"].id == event["_id"], "ended with it, not found over afterwards"


async def test_a_new_password_spares_nobody_the_second_factor(town: Town, ada: Visitor) -> None:
    app = await set_up(ada)
    stranger, link = Visitor(town.app, "ada"), await a_link(town)
    assert (await set_password(stranger, link)).status == 303
    answer = await stranger.sign_in(password=NEW)
    assert (answer.status, answer.location) == (303, "/login/factor")
    assert await stranger.me() is None
    assert (await stranger.post("/login/factor", code=app.code(later=30))).status == 303
    assert await stranger.me() is not None


async def test_a_reset_removes_all_that_a_stranger_left_in_an_unverified_account(
    town: Town,
) -> None:
    eve, device = Visitor(town.app, "ada"), Authenticator()
    assert (await eve.register()).location == "/"
    await set_up(eve)
    assert (await add_passkey(eve, device)).status == 303
    before = await the_user("ada")
    assert len(before.factors) == 2
    assert before.recovery_codes
    owner, link = town.nobody(), await a_link(town)
    assert (await set_password(owner, link)).location == "/login"
    user = await the_user("ada")
    assert (user.factors, user.recovery_codes, user.verified) == (frozenset(), [], True)
    assert await documents("passkeys") == []
    for row in await documents("sessions"):
        assert not await is_known_browser(user, browser=row["browser"])
        assert not await is_known_browser(user, ip=row["ip"])
    intruder = eve.another_device()
    credential = device.authenticate(await options(intruder, "/login/passkey/options"))
    assert (await intruder.post("/login/passkey", credential=credential)).status == 422
    assert await eve.me() is None
    assert (await owner.sign_in("ada@example.org", NEW)).location == "/", "asks for no factor"


async def test_the_link_works_once_and_of_many_who_use_it_at_once_for_one(town: Town) -> None:
    await town.account("ada")
    link = await a_link(town)
    for _ in range(3):
        assert (await town.nobody().get(link)).status == 200, "looking at it does not use it up"
    passwords = [f"{NEW} {number}" for number in range(6)]
    answers = await asyncio.gather(
        *(set_password(town.nobody(), link, password) for password in passwords)
    )
    assert sorted(answer.status for answer in answers) == [303] + 5 * [410]
    (won,) = [p for p, a in zip(passwords, answers, strict=True) if a.status == 303]
    assert (await Visitor(town.app, "ada").sign_in(password=won)).status == 303
    assert (await town.nobody().get(link)).status == 410
    assert (await set_password(town.nobody(), link)).status == 410


@pytest.mark.parametrize("token", ["x", "0" * 43, "%00", "$ne"])
async def test_a_made_up_link_leads_nowhere(nobody: Visitor, token: str) -> None:
    gone = await nobody.get(f"/reset/{token}")
    assert gone.status == 410
    assert "/forgot" in gone.links
    assert (await set_password(nobody, f"/reset/{token}")).status == 410


async def test_a_link_dies_after_half_an_hour(town: Town) -> None:
    await town.account("ada")
    link = await a_link(town)
    (token,) = await documents("tokens")
    assert token["expires_at"] - token["created_at"] == timedelta(minutes=30)
    past = clock.now() - timedelta(seconds=1)
    await Token.change_all({}, {"$set": {"expires_at": past}})
    assert (await town.nobody().get(link)).status == 410
    assert (await set_password(town.nobody(), link)).status == 410


@pytest.mark.parametrize(
    "change",
    [{"password_hash": "another"}, {"email": "other@example.org"}, {"disabled_at": clock.now()}],
)
async def test_a_link_dies_with_the_password_the_address_or_the_account(
    town: Town, change: dict[str, object]
) -> None:
    user = await town.account("ada")
    link = await a_link(town)
    await User.change({"_id": user.id}, {"$set": change})
    assert (await town.nobody().get(link)).status == 410
    assert (await set_password(town.nobody(), link)).status == 410


async def test_a_password_that_cannot_be_used_leaves_the_link_as_it_was(town: Town) -> None:
    await town.account("ada")
    link, nobody = await a_link(town), town.nobody()
    for password in ("short", "password1", "ada@example.org"):
        answer = await set_password(nobody, link, password)
        assert answer.status == 422
        assert answer.error("password")
        assert password not in answer.text.replace("Set password", "")
    assert "do not match" in (await nobody.post(link, password=NEW, confirm="x")).error("confirm")
    assert (await set_password(nobody, link)).status == 303


async def test_nobody_can_tell_by_the_answer_or_the_work_whether_an_address_has_an_account(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.account("ada")
    disabled = await town.account("bob")
    await User.change({"_id": disabled.id}, {"$set": {"disabled_at": clock.now()}})
    await runtime_of(town.app).outbox_worker.stop()
    looked: list[str] = []

    async def find(email: str) -> None:
        looked.append(email)

    monkeypatch.setattr(User, "by_email", find)
    addresses = ["ada@example.org", "bob@example.org", "nobody@example.org"]
    answers = [await town.nobody().post("/forgot", email=email) for email in addresses]
    assert {(a.status, a.location, a.text) for a in answers} == {
        (303, "/forgot/sent", answers[0].text)
    }
    queued = await documents("outbox")
    assert [mail["to"] for mail in queued] == addresses
    assert len({tuple(mail) for mail in queued}) == 1
    assert looked == []
    assert await documents("tokens") == []


async def test_only_whoever_has_an_account_gets_a_letter(town: Town) -> None:
    await town.account("ada")
    for email in ("nobody@example.org", "ada@example.org.eve.example"):
        assert (await town.nobody().post("/forgot", email=email)).status == 303
    await a_link(town)
    assert await town.no_more_letters() == []
    folder = runtime_of(town.app).settings.data / "mail"
    assert len(list(folder.iterdir())) == 1


async def test_a_letter_that_was_asked_for_before_the_password_changed_is_not_sent(
    town: Town,
) -> None:
    user = await town.account("ada")
    postman = runtime_of(town.app).outbox_worker
    await postman.stop()
    await town.nobody().post("/forgot", email="ada@example.org")
    later = clock.now() + timedelta(seconds=1)
    await User.change({"_id": user.id}, {"$set": {"password_changed_at": later}})
    await postman.deliver()
    assert await documents("outbox") == []
    assert await documents("tokens") == []


async def test_who_asks_again_and_again_has_links_that_work_and_no_flood_of_letters(
    open_town: Open,
) -> None:
    town = await open_town(reset_links_per_user=2)
    await town.account("ada")
    for _ in range(4):
        await town.nobody().post("/forgot", email="ada@example.org")
    await town.no_more_letters()
    letters = await town.letters("ada@example.org")
    assert len(letters) == 2
    for letter in letters:
        assert (await town.nobody().get(link_in(letter))).status == 200
    past = clock.now() - timedelta(seconds=1)
    await Token.change_all({}, {"$set": {"expires_at": past}})
    await a_link(town)
    assert len(await town.letters("ada@example.org")) == 3


@pytest.mark.parametrize("voided_by", ["password", "hand"])
async def test_void_links_use_up_no_room(open_town: Open, voided_by: str) -> None:
    town = await open_town(reset_links_per_user=3, limit_mail="60 per hour")
    user = await town.account("ada")
    for _ in range(4):
        await town.nobody().post("/forgot", email=user.email)
    await town.no_more_letters()
    assert len(await town.letters(user.email, "Set a new password")) == 3
    if voided_by == "password":
        await user.change_password("another", by=NOBODY)
    else:
        await User.change({"_id": user.id}, {"$set": {"password_hash": "another"}})
    before = len(await documents("tokens"))
    await town.nobody().post("/forgot", email=user.email)
    await town.no_more_letters()
    assert len(await documents("tokens")) == before + 1
    link = link_in((await town.letters(user.email, "Set a new password"))[0])
    assert (await set_password(town.nobody(), link)).status == 303


async def test_a_link_outlives_the_hash_upgrade_at_a_sign_in(town: Town) -> None:
    user = await town.account("ada")
    link = await a_link(town)
    await user.upgrade_hash("the same password, hashed anew")
    assert (await town.nobody().get(link)).status == 200
    by_hand = {"$set": {"password_hash": "written by hand"}}
    await User.change({"_id": user.id}, by_hand)
    assert (await town.nobody().get(link)).status == 410
    back = {"$set": {"password_hash": "the same password, hashed anew"}}
    await User.change({"_id": user.id}, back)
    assert (await set_password(town.nobody(), link)).status == 303


async def test_links_lead_to_the_configured_origin_whatever_the_host_header_says(
    town: Town,
) -> None:
    await town.account("ada")
    nobody = town.nobody()
    answer = await nobody.send(
        "/forgot",
        {"csrf_token": await nobody.csrf_token(), "email": "ada@example.org"},
        {
            "Host": "localhost:1",
            "X-Forwarded-Host": "evil.example",
            "Sec-Fetch-Site": "same-origin",
        },
    )
    assert answer.status == 303
    (letter,) = await town.letters("ada@example.org")
    assert "http://127.0.0.1:5000/reset/" in letter
    assert "evil" not in letter


async def test_what_is_stored_opens_nothing(town: Town) -> None:
    await town.account("ada")
    token = (await a_link(town)).rpartition("/")[2]
    for name in ("tokens", "outbox", "events", "notices", "users"):
        assert token not in str(await documents(name))
    (stored,) = await documents("tokens")
    assert (await town.nobody().get(f"/reset/{stored['digest']}")).status == 410


async def test_a_link_of_one_purpose_is_none_of_another(town: Town) -> None:
    await town.account("ada")
    token = (await a_link(town)).rpartition("/")[2]
    assert (await town.nobody().get(f"/verify/{token}")).status == 410
    assert (await town.nobody().get(f"/setup/{token}")).status == 410
    await Token.change_all({}, {"$set": {"purpose": Purpose.CONFIRM}})
    assert (await town.nobody().get(f"/reset/{token}")).status == 410


async def test_the_page_of_the_link_can_send_its_form_though_it_tells_no_origin(
    town: Town,
) -> None:
    await town.account("ada")
    link, nobody = await a_link(town), town.nobody()
    fields = {"csrf_token": await nobody.csrf_token(), "password": NEW, "confirm": NEW}
    for foreign in ("cross-site", "same-site", "none"):
        refused = await nobody.send(link, fields, {"Origin": "null", "Sec-Fetch-Site": foreign})
        assert refused.status == 403
    ours = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}
    assert (await nobody.send(link, {**fields, "csrf_token": "x"}, ours)).status == 422
    assert (await nobody.send(link, fields, ours)).status == 303


async def test_the_letter_and_what_it_tells_of_stand_or_fall_together(
    town: Town, ada: Visitor
) -> None:
    link = await a_link(town)
    database: Any = User.get_motor_collection().database
    async with only_accepting(database, "outbox", NOTHING):
        assert (await set_password(town.nobody(), link)).status == 500
    assert await ada.me() is not None
    assert await documents("events", verb="password.reset") == []
    assert (await set_password(town.nobody(), link)).status == 303
