"""Resetting a forgotten password (ASVS 6.3.8, 6.4.3, 2.3.4, 3.4.5)."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from quartapp import clock
from quartapp.models import Role, Token, User
from quartapp.models.accounts import registration
from quartapp.models.accounts.one_time_token import Purpose
from quartapp.models.base.actor import SYSTEM
from quartapp.models.sessions.opening import is_known_browser
from quartapp.runtime import runtime_of
from tests.conftest import PASSWORD
from tests.integration.models.helpers import NOTHING, not_none, only_accepting
from tests.integration.routes.authenticator import set_up
from tests.integration.routes.conftest import (
    Answer,
    StartApp,
    Visitor,
    Visitors,
    documents,
    link_in,
    user_named,
)
from tests.integration.routes.requests import add_passkey, options
from tests.security_key import Authenticator

NEW = "quite another horse and battery"


async def reset_link(visitors: Visitors, email: str = "ada@example.org") -> str:
    answer = await visitors.anonymous().post("/forgot", email=email)
    assert (answer.status, answer.location) == (303, "/forgot/sent")
    await visitors.wait_for_outbox()
    return link_in((await visitors.emails("ada@example.org", "Set a new password"))[0])


async def set_password(visitor: Visitor, link: str, password: str = NEW) -> Answer:
    return await visitor.post(link, password=password, confirm=password)


async def test_a_reset_ends_all_sessions_and_signs_no_browser_in(
    visitors: Visitors, ada: Visitor
) -> None:
    await ada.post("/account/email", email="eve@example.org")
    link, anonymous = await reset_link(visitors, "ADA@example.org"), visitors.anonymous()
    page = await anonymous.get(link)
    assert page.status == 200
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-store"
    answer = await set_password(anonymous, link)
    assert (answer.status, answer.location) == (303, "/login")
    assert await anonymous.me() is None
    assert await ada.me() is None
    assert "password" in (await ada.get("/login")).text
    (over,) = await documents("sessions")
    assert over["ended_reason"] == "password_changed"
    assert (await ada.sign_in(password=PASSWORD)).status == 422
    assert (await ada.sign_in(password=NEW)).status == 303
    user = await user_named("ada")
    assert user.email_verified_at is not None
    assert user.pending_email is None, "the browser that asked for it is signed out, too"
    (told,) = await visitors.emails("ada@example.org", "Your password was changed")
    assert "/forgot" in told
    (event,) = await documents("events", verb="password.reset")
    assert over["ended_event"].id == event["_id"], "the reset ended it"


async def test_a_reset_does_not_bypass_the_second_factor(visitors: Visitors, ada: Visitor) -> None:
    app = await set_up(ada)
    stranger, link = Visitor(visitors.app, "ada"), await reset_link(visitors)
    assert (await set_password(stranger, link)).status == 303
    answer = await stranger.sign_in(password=NEW)
    assert (answer.status, answer.location) == (303, "/login/factor")
    assert await stranger.me() is None
    assert (await stranger.post("/login/factor", code=app.code(later=30))).status == 303
    assert await stranger.me() is not None


async def test_a_reset_removes_what_a_stranger_left_in_an_unverified_account(
    visitors: Visitors,
) -> None:
    eve, device = Visitor(visitors.app, "ada"), Authenticator()
    assert (await eve.register()).location == "/"
    await set_up(eve)
    assert (await add_passkey(eve, device)).status == 303
    before = await user_named("ada")
    assert len(before.factors) == 2
    assert before.recovery_codes
    owner, link = visitors.anonymous(), await reset_link(visitors)
    assert (await set_password(owner, link)).location == "/login"
    user = await user_named("ada")
    assert (user.factors, user.recovery_codes, user.verified) == (frozenset(), [], True)
    assert await documents("passkeys") == []
    for row in await documents("sessions"):
        assert not await is_known_browser(user, browser=row["browser"])
        assert not await is_known_browser(user, ip=row["ip"])
    intruder = eve.another_device()
    credential = device.authenticate(await options(intruder, "/login/passkey/options"))
    assert (await intruder.post("/login/passkey", credential=credential)).status == 422
    assert await eve.me() is None
    assert (await owner.sign_in("ada@example.org", NEW)).location == "/", "no factor is asked for"


async def test_concurrent_uses_of_a_reset_link_succeed_once(visitors: Visitors) -> None:
    await visitors.account("ada")
    link = await reset_link(visitors)
    for _ in range(3):
        assert (await visitors.anonymous().get(link)).status == 200, (
            "opening the link does not use it up"
        )
    passwords = [f"{NEW} {number}" for number in range(6)]
    answers = await asyncio.gather(
        *(set_password(visitors.anonymous(), link, password) for password in passwords)
    )
    assert sorted(answer.status for answer in answers) == [303] + 5 * [410]
    (won,) = [p for p, a in zip(passwords, answers, strict=True) if a.status == 303]
    assert (await Visitor(visitors.app, "ada").sign_in(password=won)).status == 303
    assert (await visitors.anonymous().get(link)).status == 410
    assert (await set_password(visitors.anonymous(), link)).status == 410


@pytest.mark.parametrize("token", ["x", "0" * 43, "%00", "$ne"])
async def test_a_made_up_link_is_refused(anonymous: Visitor, token: str) -> None:
    gone = await anonymous.get(f"/reset/{token}")
    assert gone.status == 410
    assert "/forgot" in gone.links
    assert (await set_password(anonymous, f"/reset/{token}")).status == 410


async def test_a_reset_link_expires_after_half_an_hour(visitors: Visitors) -> None:
    await visitors.account("ada")
    link = await reset_link(visitors)
    (token,) = await documents("tokens")
    assert token["expires_at"] - token["created_at"] == timedelta(minutes=30)
    past = clock.now() - timedelta(seconds=1)
    await Token.change_all({}, {"$set": {"expires_at": past}})
    assert (await visitors.anonymous().get(link)).status == 410
    assert (await set_password(visitors.anonymous(), link)).status == 410


@pytest.mark.parametrize(
    "change",
    [{"password_hash": "another"}, {"email": "other@example.org"}, {"disabled_at": clock.now()}],
)
async def test_a_changed_or_disabled_account_voids_the_reset_link(
    visitors: Visitors, change: dict[str, object]
) -> None:
    user = await visitors.account("ada")
    link = await reset_link(visitors)
    await User.change({"_id": user.id}, {"$set": change})
    assert (await visitors.anonymous().get(link)).status == 410
    assert (await set_password(visitors.anonymous(), link)).status == 410


async def test_a_refused_password_does_not_use_up_the_reset_link(visitors: Visitors) -> None:
    await visitors.account("ada")
    link, anonymous = await reset_link(visitors), visitors.anonymous()
    for password in ("short", "password1", "ada@example.org"):
        answer = await set_password(anonymous, link, password)
        assert answer.status == 422
        assert answer.error("password")
        assert password not in answer.text.replace("Set password", "")
    assert "do not match" in (await anonymous.post(link, password=NEW, confirm="x")).error(
        "confirm"
    )
    assert (await set_password(anonymous, link)).status == 303


async def test_answer_and_work_do_not_reveal_whether_an_account_exists(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    await visitors.account("ada")
    disabled = await visitors.account("bob")
    await User.change({"_id": disabled.id}, {"$set": {"disabled_at": clock.now()}})
    await runtime_of(visitors.app).outbox_worker.stop()
    looked: list[str] = []

    async def find(email: str) -> None:
        looked.append(email)

    monkeypatch.setattr(User, "by_email", find)
    addresses = ["ada@example.org", "bob@example.org", "nobody@example.org"]
    answers = [await visitors.anonymous().post("/forgot", email=email) for email in addresses]
    assert {(a.status, a.location, a.text) for a in answers} == {
        (303, "/forgot/sent", answers[0].text)
    }
    queued = await documents("outbox")
    assert [mail["to"] for mail in queued] == addresses
    assert len({tuple(mail) for mail in queued}) == 1
    assert looked == []
    assert await documents("tokens") == []


async def test_a_reset_email_is_sent_only_to_an_existing_account(visitors: Visitors) -> None:
    await visitors.account("ada")
    for email in ("nobody@example.org", "ada@example.org.eve.example"):
        assert (await visitors.anonymous().post("/forgot", email=email)).status == 303
    await reset_link(visitors)
    assert await visitors.wait_for_outbox() == []
    folder = runtime_of(visitors.app).settings.data / "mail"
    assert len(list(folder.iterdir())) == 1


async def test_a_reset_email_queued_before_a_password_change_is_not_sent(
    visitors: Visitors,
) -> None:
    user = await visitors.account("ada")
    postman = runtime_of(visitors.app).outbox_worker
    await postman.stop()
    await visitors.anonymous().post("/forgot", email="ada@example.org")
    later = clock.now() + timedelta(seconds=1)
    await User.change({"_id": user.id}, {"$set": {"password_changed_at": later}})
    await postman.deliver()
    assert await documents("outbox") == []
    assert await documents("tokens") == []


@pytest.mark.parametrize("claimed", [False, True])
async def test_repeated_reset_requests_send_few_emails_with_valid_links(
    start_app: StartApp, claimed: bool
) -> None:
    visitors = await start_app(reset_links_per_user=2)
    if claimed:
        member = not_none(await Role.named("member"))
        await registration.claim("ada", "ada@example.org", "hash", roles=[member], by=SYSTEM)
    else:
        await visitors.account("ada")
    for _ in range(4):
        await visitors.anonymous().post("/forgot", email="ada@example.org")
    await visitors.wait_for_outbox()
    messages = await visitors.emails("ada@example.org", "Set a new password")
    assert len(messages) == 2
    for message in messages:
        assert (await visitors.anonymous().get(link_in(message))).status == 200
    past = clock.now() - timedelta(seconds=1)
    await Token.change_all({}, {"$set": {"expires_at": past}})
    await reset_link(visitors)
    assert len(await visitors.emails("ada@example.org", "Set a new password")) == 3


async def test_the_claimed_address_is_no_password(visitors: Visitors) -> None:
    member, address = not_none(await Role.named("member")), "vkxwqjzhgbtr@example.org"
    await registration.claim("ada", address, "hash", roles=[member], by=SYSTEM)
    await visitors.anonymous().post("/forgot", email=address)
    link = link_in((await visitors.emails(address, "Set a new password"))[0])
    answer = await set_password(visitors.anonymous(), link, "vkxwqjzhgbtr")
    assert answer.status == 422
    assert (await set_password(visitors.anonymous(), link)).status == 303


@pytest.mark.parametrize("voided_by", ["password", "hand"])
async def test_void_reset_links_do_not_count_for_the_limit(
    start_app: StartApp, voided_by: str
) -> None:
    visitors = await start_app(reset_links_per_user=3, limit_mail="60 per hour")
    user = await visitors.account("ada")
    for _ in range(4):
        await visitors.anonymous().post("/forgot", email=user.email)
    await visitors.wait_for_outbox()
    assert len(await visitors.emails(user.email, "Set a new password")) == 3
    if voided_by == "password":
        await user.change_password("another", by=SYSTEM)
    else:
        await User.change({"_id": user.id}, {"$set": {"password_hash": "another"}})
    before = len(await documents("tokens"))
    await visitors.anonymous().post("/forgot", email=user.email)
    await visitors.wait_for_outbox()
    assert len(await documents("tokens")) == before + 1
    link = link_in((await visitors.emails(user.email, "Set a new password"))[0])
    assert (await set_password(visitors.anonymous(), link)).status == 303


async def test_a_reset_link_survives_a_hash_upgrade(visitors: Visitors) -> None:
    user = await visitors.account("ada")
    link = await reset_link(visitors)
    await user.upgrade_hash("the same password, hashed anew")
    assert (await visitors.anonymous().get(link)).status == 200
    by_hand = {"$set": {"password_hash": "written by hand"}}
    await User.change({"_id": user.id}, by_hand)
    assert (await visitors.anonymous().get(link)).status == 410
    back = {"$set": {"password_hash": "the same password, hashed anew"}}
    await User.change({"_id": user.id}, back)
    assert (await set_password(visitors.anonymous(), link)).status == 303


async def test_links_in_emails_use_the_configured_origin(
    visitors: Visitors,
) -> None:
    await visitors.account("ada")
    anonymous = visitors.anonymous()
    answer = await anonymous.send(
        "/forgot",
        {"csrf_token": await anonymous.csrf_token(), "email": "ada@example.org"},
        {
            "Host": "localhost:1",
            "X-Forwarded-Host": "evil.example",
            "Sec-Fetch-Site": "same-origin",
        },
    )
    assert answer.status == 303
    (message,) = await visitors.emails("ada@example.org")
    assert "http://127.0.0.1:5000/reset/" in message
    assert "evil" not in message


async def test_a_stored_digest_is_no_reset_link(visitors: Visitors) -> None:
    await visitors.account("ada")
    token = (await reset_link(visitors)).rpartition("/")[2]
    for name in ("tokens", "outbox", "events", "notices", "users"):
        assert token not in str(await documents(name))
    (stored,) = await documents("tokens")
    assert (await visitors.anonymous().get(f"/reset/{stored['digest']}")).status == 410


async def test_a_token_is_accepted_for_its_purpose_only(visitors: Visitors) -> None:
    await visitors.account("ada")
    token = (await reset_link(visitors)).rpartition("/")[2]
    assert (await visitors.anonymous().get(f"/verify/{token}")).status == 410
    assert (await visitors.anonymous().get(f"/setup/{token}")).status == 410
    await Token.change_all({}, {"$set": {"purpose": Purpose.CONFIRM}})
    assert (await visitors.anonymous().get(f"/reset/{token}")).status == 410


async def test_the_reset_form_is_accepted_without_an_origin_header(
    visitors: Visitors,
) -> None:
    await visitors.account("ada")
    link, anonymous = await reset_link(visitors), visitors.anonymous()
    fields = {"csrf_token": await anonymous.csrf_token(), "password": NEW, "confirm": NEW}
    for foreign in ("cross-site", "same-site", "none"):
        refused = await anonymous.send(link, fields, {"Origin": "null", "Sec-Fetch-Site": foreign})
        assert refused.status == 403
    ours = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}
    assert (await anonymous.send(link, {**fields, "csrf_token": "x"}, ours)).status == 422
    assert (await anonymous.send(link, fields, ours)).status == 303


async def test_a_reset_and_its_email_are_one_transaction(visitors: Visitors, ada: Visitor) -> None:
    link = await reset_link(visitors)
    database: Any = User.get_motor_collection().database
    async with only_accepting(database, "outbox", NOTHING):
        assert (await set_password(visitors.anonymous(), link)).status == 500
    assert await ada.me() is not None
    assert await documents("events", verb="password.reset") == []
    assert (await set_password(visitors.anonymous(), link)).status == 303
