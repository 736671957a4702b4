"""Verifying an address and changing it, by link and by code (ASVS 2.3.1, 2.3.4, 6.3.7, 6.5.5).

Here verification is not required: see test_verification.
"""

import asyncio
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.models import Token, User
from quartapp.models.accounts.account import address_fields
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import linked_id
from quartapp.runtime import runtime_of
from tests.conftest import PASSWORD
from tests.integration.routes.authenticator import app_code, secret_on
from tests.integration.routes.conftest import (
    Answer,
    StartApp,
    Visitor,
    Visitors,
    code_in,
    documents,
    link_in,
    user_named,
)
from tests.integration.routes.requests import add_passkey
from tests.security_key import Authenticator


async def newcomer(visitors: Visitors, username: str = "ada") -> tuple[Visitor, str]:
    """Return a visitor who has just registered, and the email to them."""
    visitor = Visitor(visitors.app, username)
    assert (await visitor.register()).status == 303
    return visitor, (await visitors.emails(visitor.email, "Verify"))[0]


async def next_letter(visitors: Visitors, email: str) -> str:
    """Wait until all emails are sent and return the newest."""
    await visitors.wait_for_outbox()
    return (await visitors.emails(email, "Verify"))[0]


async def is_verified(username: str = "ada") -> bool:
    return (await user_named(username)).email_verified_at is not None


async def type_code(visitor: Visitor, code: str) -> Answer:
    return await visitor.post("/verify", code=code)


def another(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


async def test_a_verification_link_takes_effect_when_its_button_is_pressed(
    visitors: Visitors,
) -> None:
    ada, message = await newcomer(visitors)
    link, stranger = link_in(message), visitors.anonymous()
    assert "not verified" in (await ada.get("/account")).text
    for _ in range(2):
        page = await stranger.get(link)
        assert (page.status, page.headers["Referrer-Policy"]) == (200, "no-referrer")
        assert (await stranger.ask("HEAD", link)).status == 200
    assert not await is_verified(), "programs that scan mail open links"
    assert (await stranger.post(link)).status == 422
    assert not await is_verified(), "the reader of the email may not know the account"
    answer = await ada.post(link)
    assert (answer.status, answer.location) == (303, "/account")
    assert await is_verified()
    assert "not verified" not in (await ada.get("/account")).text
    assert (await stranger.get(link)).status == 410
    assert (await ada.get("/verify")).location == "/account"
    assert len(await documents("events", verb="email.confirmed")) == 1


async def test_a_code_verifies_the_address(visitors: Visitors) -> None:
    ada, message = await newcomer(visitors)
    code = code_in(message)
    answer = await type_code(ada, f" {code[:3]} {code[3:]}")
    assert (answer.status, answer.location) == (303, "/account")
    assert await is_verified()


@pytest.mark.parametrize("tries", [5, 3])
async def test_concurrent_tries_of_a_code_are_limited(start_app: StartApp, tries: int) -> None:
    visitors = await start_app(tries_per_code=tries)
    ada, message = await newcomer(visitors)
    wrong = another(code_in(message))
    answers = await asyncio.gather(*(type_code(ada, wrong) for _ in range(tries + 3)))
    assert {answer.status for answer in answers} == {422}
    (token,) = await documents("tokens")
    assert token["guesses"] == tries
    late = await type_code(ada, code_in(message))
    assert late.status == 422
    assert "Send another email" in late.error("code")
    assert not await is_verified()
    assert (await ada.post("/account/email/again")).status == 303
    assert (await type_code(ada, code_in(await next_letter(visitors, ada.email)))).status == 303
    assert await is_verified()


async def test_a_wrong_code_is_answered_with_the_number_of_tries_left(
    visitors: Visitors,
) -> None:
    ada, message = await newcomer(visitors)
    wrong = another(code_in(message))
    for left in ("4 more tries", "3 more tries", "2 more tries", "1 more try", "no more tries"):
        answer = await type_code(ada, wrong)
        assert left in answer.error("code")
        assert wrong not in answer.text


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "½½½½½½", "12345\0", "$ne"])
async def test_a_malformed_code_uses_up_no_try(visitors: Visitors, code: str) -> None:
    ada, _ = await newcomer(visitors)
    answer = await type_code(ada, code)
    assert answer.status == 422
    assert answer.error("code")
    (token,) = await documents("tokens")
    assert token["guesses"] == 0


async def test_link_and_code_expire_after_ten_minutes(visitors: Visitors) -> None:
    ada, message = await newcomer(visitors)
    (token,) = await documents("tokens")
    assert token["expires_at"] - token["created_at"] == timedelta(minutes=10)
    past = clock.now() - timedelta(seconds=1)
    await Token.change_all({}, {"$set": {"expires_at": past}})
    assert (await ada.get(link_in(message))).status == 410
    assert (await ada.post(link_in(message))).status == 410
    assert (await type_code(ada, code_in(message))).status == 422
    assert not await is_verified()


async def test_a_new_verification_email_voids_the_old_one_and_is_limited(
    start_app: StartApp,
) -> None:
    visitors = await start_app(limit_letter="3 per 2 hours")
    ada, first = await newcomer(visitors)
    for _ in range(2):
        assert (await ada.post("/account/email/again")).status == 303
    newest = await next_letter(visitors, ada.email)
    assert (await ada.get(link_in(first))).status == 410
    refused = await ada.post("/account/email/again")
    assert refused.status == 429
    assert 7100 < int(refused.headers["Retry-After"]) <= 7200
    assert "At most 3 emails are sent within 2 hours." in refused.text
    assert "sent in 2 hours." in refused.text
    changing = await ada.post("/account/email", email="new@example.org")
    assert changing.status == 429
    assert changing.fields["email"] == "new@example.org"
    assert (await user_named("ada")).pending_email is None
    assert (await ada.post(link_in(newest))).status == 303
    # Two hours later.
    user = await user_named("ada")
    earlier = [at - timedelta(hours=2) for at in user.letters_asked]
    await User.change({"_id": user.id}, {"$set": {"letters_asked": earlier}})
    assert (await ada.post("/account/email", email="new@example.org")).status == 303


async def test_concurrent_requests_send_no_more_emails_than_the_limit(visitors: Visitors) -> None:
    ada, _ = await newcomer(visitors)
    token = await ada.csrf_token()
    answers = await asyncio.gather(
        *(ada.send("/account/email/again", {"csrf_token": token}) for _ in range(8))
    )
    assert sorted(a.status for a in answers) == 4 * [303] + 4 * [429]
    await visitors.wait_for_outbox()
    messages = await visitors.emails(ada.email)
    assert len(messages) <= 5
    # An email is not sent once a newer one is queued, so the last one has a valid code.
    assert (await ada.post(link_in(messages[0]))).status == 303


async def test_a_new_address_applies_once_verified_and_the_old_one_is_notified(
    visitors: Visitors, ada: Visitor
) -> None:
    answer = await ada.post("/account/email", email="new@example.org")
    assert (answer.status, answer.location) == (303, "/verify")
    (message,) = await visitors.emails("new@example.org")
    assert (await user_named("ada")).email == "ada@example.org"
    assert "new@example.org" in (await ada.get("/account")).text
    assert (await ada.post(link_in(message))).location == "/account"
    user = await user_named("ada")
    assert (user.email, user.pending_email) == ("new@example.org", None)
    assert user.email_verified_at is not None
    (told,) = await visitors.emails("ada@example.org")
    assert "The email address of the account ada was changed" in told
    assert "new@example.org" not in told
    (notice,) = await documents("notices", kind="email.changed")
    assert notice["user"].id == user.id
    (event,) = await documents("events", verb="email.changed")
    assert event["details"] == {"was": "ada@example.org", "verified": True}
    assert await ada.me() is not None, "the permissions are unchanged"
    assert (await visitors.anonymous().sign_in("new@example.org")).status == 303
    assert (await visitors.anonymous().sign_in("ada@example.org")).status == 422


async def test_a_new_address_is_verified_by_code_on_the_same_page(
    visitors: Visitors, ada: Visitor
) -> None:
    await ada.post("/account/email", email="new@example.org")
    (message,) = await visitors.emails("new@example.org")
    assert "new@example.org" in (await ada.get("/verify")).text
    assert (await type_code(ada, code_in(message))).status == 303
    assert (await user_named("ada")).email == "new@example.org"


async def test_cancelling_or_replacing_a_change_of_address_voids_its_link(
    visitors: Visitors, ada: Visitor
) -> None:
    await ada.post("/account/email", email="first@example.org")
    (first,) = await visitors.emails("first@example.org")
    await ada.post("/account/email", email="second@example.org")
    (second,) = await visitors.emails("second@example.org")
    assert (await ada.post(link_in(first))).status == 410
    assert (await ada.post("/account/email/keep")).status == 303
    assert (await ada.post(link_in(second))).status == 410
    assert (await user_named("ada")).email == "ada@example.org"


async def test_a_password_change_voids_a_pending_change_of_address(
    visitors: Visitors, ada: Visitor
) -> None:
    await ada.post("/account/email", email="eve@example.org")
    (message,) = await visitors.emails("eve@example.org")
    changed = {"password": "another horse and battery", "confirm": "another horse and battery"}
    assert (
        await ada.post("/account/password", current_password=ada.password, **changed)
    ).status == 303
    assert (await visitors.anonymous().post(link_in(message))).status == 410
    assert (await type_code(ada, code_in(message))).location == "/account"
    await ada.post("/account/email/again")
    await visitors.wait_for_outbox()
    assert len(await visitors.emails("eve@example.org")) == 1, "the pending change is void"
    assert (await user_named("ada")).email == "ada@example.org"


async def test_only_the_mailbox_learns_that_an_address_is_taken(
    visitors: Visitors, ada: Visitor
) -> None:
    await visitors.account("bob")
    taken = await ada.post("/account/email", email="BOB@example.org")
    free = await ada.post("/account/email", email="free@example.org")
    assert (taken.status, taken.location) == (free.status, free.location)
    await ada.post("/account/email", email="BOB@example.org")
    await visitors.wait_for_outbox()
    assert not await documents("tokens", code={"$ne": None}, used_at=None)
    told = await visitors.emails("bob@example.org", "You already have an account")
    assert not any("/verify/" in message for message in told)
    assert (await type_code(ada, "123456")).status == 422
    assert (await user_named("ada")).email == "ada@example.org"
    assert (await user_named("bob")).email == "bob@example.org"


async def test_concurrent_verifications_of_one_address_succeed_once(visitors: Visitors) -> None:
    people = [await visitors.member(f"p{number}") for number in range(5)]
    for person in people:
        await person.post("/account/email", email="shared@example.org")
    messages = await visitors.emails("shared@example.org", count=5)
    answers = await asyncio.gather(
        *(visitors.anonymous().post(link_in(message), password=PASSWORD) for message in messages)
    )
    assert sorted(answer.status for answer in answers) == [303] + 4 * [422]
    assert len(await documents("users", email="shared@example.org")) == 1


async def test_concurrent_uses_of_a_verification_link_succeed_once(visitors: Visitors) -> None:
    ada, message = await newcomer(visitors)
    token = await ada.csrf_token()
    answers = await asyncio.gather(
        *(ada.send(link_in(message), {"csrf_token": token}) for _ in range(5))
    )
    assert sorted(answer.status for answer in answers) == [303] + 4 * [410]
    assert len(await documents("events", verb="email.confirmed")) == 1


async def test_a_code_of_another_account_is_refused(visitors: Visitors) -> None:
    _, message = await newcomer(visitors)
    eve, _ = await newcomer(visitors, "eve")
    answer = await type_code(eve, code_in(message))
    assert answer.status == 422
    assert not await is_verified("ada")
    assert not await is_verified("eve")


async def test_the_current_address_is_refused_as_a_new_one(
    visitors: Visitors, ada: Visitor
) -> None:
    await User.change({"username": "ada"}, {"$set": {"email_verified_at": clock.now()}})
    answer = await ada.post("/account/email", email="ada@example.org")
    assert answer.status == 422
    assert answer.error("email")
    assert (await ada.post("/account/email", email="no address")).status == 422
    assert await documents("outbox") == []


async def test_the_database_has_no_code_and_no_link_in_clear(visitors: Visitors) -> None:
    _, message = await newcomer(visitors)
    everything = "".join([str(await documents(name)) for name in ("tokens", "users", "events")])
    assert link_in(message).rpartition("/")[2] not in everything
    (token,) = await documents("tokens")
    assert code_in(message) not in str(token)
    assert len(token["code"]) == 64


async def test_a_sign_in_from_a_new_browser_sends_an_email(visitors: Visitors) -> None:
    ada, message = await newcomer(visitors)
    await ada.post(link_in(message))
    await ada.post("/logout")
    assert (await ada.sign_in()).status == 303
    other = ada.another_device()
    assert (await other.sign_in()).status == 303
    (told,) = await visitors.emails(ada.email, "Signed in")
    assert "/account/timeline" in told
    await other.post("/logout")
    assert (await other.sign_in()).status == 303
    await visitors.wait_for_outbox()
    assert len(await visitors.emails(ada.email, "Signed in")) == 1, "the browser is known now"


async def test_a_password_change_sends_an_email(visitors: Visitors, ada: Visitor) -> None:
    changed = {"password": "another horse and battery", "confirm": "another horse and battery"}
    await ada.post("/account/password", current_password=ada.password, **changed)
    (told,) = await visitors.emails(ada.email, "Your password was changed")
    assert "another horse" not in told


# ---- undoing a change


async def move(visitors: Visitors, visitor: Visitor, email: str) -> None:
    """Change the address and verify the new one."""
    assert (await visitor.post("/account/email", email=email)).location == "/verify"
    await visitors.wait_for_outbox()
    assert (await visitor.post(link_in((await visitors.emails(email, "Verify"))[0]))).status == 303


async def undo_link(visitors: Visitors, email: str) -> str:
    await visitors.wait_for_outbox()
    return link_in((await visitors.emails(email, "Your email address was changed"))[0])


async def test_the_old_address_recovers_a_hijacked_account(visitors: Visitors) -> None:
    ada = await visitors.member("ada")
    thief = ada.copy()
    await move(visitors, thief, "eve@example.org")
    link = await undo_link(visitors, "ada@example.org")
    # The intruder's further actions do not prevent it.
    new = "quite another horse and battery"
    sent = {"current_password": thief.password, "password": new, "confirm": new}
    assert (await thief.post("/account/password", **sent)).status == 303
    await move(visitors, thief, "mallory@example.org")
    theirs = await undo_link(visitors, "eve@example.org")
    await visitors.anonymous().post("/forgot", email="mallory@example.org")
    await visitors.wait_for_outbox()
    reset = link_in((await visitors.emails("mallory@example.org", "Set a new password"))[0])

    owner = visitors.anonymous()
    page = await owner.get(link)
    assert (page.status, page.headers["Referrer-Policy"]) == (200, "no-referrer")
    assert "ada@example.org" in page.text
    assert "mallory" not in page.text
    assert (await user_named("ada")).email == "mallory@example.org", (
        "opening the page changes nothing"
    )
    answer = await owner.post(link)
    assert (answer.status, answer.location[:7]) == (303, "/reset/")
    user = await user_named("ada")
    assert (user.email, user.pending_email) == ("ada@example.org", None)
    assert user.email_verified_at is not None
    assert await thief.me() is None
    for password in (new, ada.password):
        assert (await thief.another_device().sign_in(password=password)).status == 422
    for void in (link, theirs, reset):
        assert (await visitors.anonymous().get(void)).status == 410
        assert (await visitors.anonymous().post(void)).status == 410
    mine = "my own horse and battery, again"
    assert (await owner.post(answer.location, password=mine, confirm=mine)).location == "/login"
    assert (await visitors.anonymous().sign_in("ada@example.org", mine)).status == 303
    (event,) = await documents("events", verb="email.restored")
    assert event["details"] == {"was": "mallory@example.org"}


async def test_undoing_removes_only_factors_added_by_the_intruder(visitors: Visitors) -> None:
    thief = await visitors.member("ada")
    assert (await add_passkey(thief, Authenticator(), name="of the owner")).status == 303
    await move(visitors, thief, "eve@example.org")
    assert (await add_passkey(thief, Authenticator(), name="of the thief")).status == 303
    path = "/account/factors/totp"
    code = app_code(secret_on(await thief.get(path)))
    assert (await thief.post(path, code=code)).status == 303
    assert (
        await visitors.anonymous().post(await undo_link(visitors, "ada@example.org"))
    ).status == 303
    (passkey,) = await documents("passkeys")
    user = await user_named("ada")
    assert passkey["name"] == "of the owner"
    assert [linked_id(link) for link in user.passkeys] == [passkey["_id"]]
    assert (user.totp, user.recovery_codes) == (None, [])


async def test_the_newer_undo_link_cannot_void_the_older_one(visitors: Visitors) -> None:
    thief = await visitors.member("ada")
    await move(visitors, thief, "eve@example.org")
    link = await undo_link(visitors, "ada@example.org")
    await move(visitors, thief, "mallory@example.org")
    assert (
        await visitors.anonymous().post(await undo_link(visitors, "eve@example.org"))
    ).status == 303
    assert (await user_named("ada")).email == "eve@example.org"
    assert (await visitors.anonymous().post(link)).status == 303
    assert (await user_named("ada")).email == "ada@example.org"


async def test_an_email_about_an_undone_change_is_not_sent(visitors: Visitors) -> None:
    thief = await visitors.member("ada")
    await move(visitors, thief, "eve@example.org")
    link = await undo_link(visitors, "ada@example.org")
    postman = runtime_of(visitors.app).outbox_worker
    user = await user_named("ada")
    await thief.post("/account/email", email="mallory@example.org")
    await visitors.wait_for_outbox()
    verify = link_in((await visitors.emails("mallory@example.org", "Verify"))[0])
    await postman.stop()
    assert (await thief.post(verify)).status == 303
    assert (await visitors.anonymous().post(link)).status == 303
    await postman.deliver()
    assert await documents("outbox") == []
    told = await visitors.emails("eve@example.org", "Your email address was changed", count=0)
    assert told == []
    assert user.email == "eve@example.org"


@pytest.mark.parametrize("state", ["closed", "disabled", "taken", "late", "unverified"])
async def test_a_change_of_address_can_be_undone_in_each_account_state(
    visitors: Visitors, state: str
) -> None:
    thief = await visitors.member("ada")
    user = await user_named("ada")
    if state == "unverified":
        await User.change({"_id": user.id}, {"$set": {"email_verified_at": None}})
    await move(visitors, thief, "eve@example.org")
    await visitors.wait_for_outbox()
    if state == "unverified":
        assert await visitors.emails("ada@example.org", count=0) == []
        assert await documents("tokens", purpose="undo") == []
        return
    link = await undo_link(visitors, "ada@example.org")
    if state == "closed":
        assert (await thief.post("/account/deactivate")).status == 303
    elif state == "disabled":
        await user.disable(by=SYSTEM)
    elif state == "taken":
        await visitors.account("other")
        other = await user_named("other")
        await User.change({"_id": other.id}, {"$set": address_fields("ada@example.org")})
    elif state == "late":
        past = clock.now() - timedelta(seconds=1)
        await Token.change_all({"purpose": "undo"}, {"$set": {"expires_at": past}})
    answer = await visitors.anonymous().post(link)
    assert answer.status == {"closed": 303, "disabled": 410, "taken": 422, "late": 410}[state]
    assert ((await user_named("ada")).email == "ada@example.org") is (state == "closed")
    if state == "taken":
        assert "Another account now uses" in answer.text
        assert (await visitors.anonymous().get(link)).status == 200, "the link is not used up"


async def test_concurrent_uses_of_an_undo_link_succeed_once(visitors: Visitors) -> None:
    thief = await visitors.member("ada")
    await move(visitors, thief, "eve@example.org")
    link = await undo_link(visitors, "ada@example.org")
    browsers = [visitors.anonymous() for _ in range(5)]
    answers = await asyncio.gather(*(visitor.post(link) for visitor in browsers))
    assert sorted(answer.status for answer in answers) == [303, 410, 410, 410, 410]
