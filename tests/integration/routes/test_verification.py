"""Accounts that cannot be used before their email address is verified (ASVS 6.3.8)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from quartapp import clock
from quartapp.models import User
from quartapp.models.accounts import email_address
from quartapp.models.accounts.account import Unverified
from quartapp.models.accounts.one_time_token import issue_setup
from quartapp.models.accounts.registration import claim as claim_account
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.factors import enrolment
from quartapp.models.factors.factor import Factor
from quartapp.models.privacy import account_deletion
from quartapp.models.sessions.reason import Reason
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    code_in,
    documents,
    link_in,
    role_named,
    user_named,
)

VERIFY, TAKEN = "Verify your email address", "You already have an account"
OTHER_PASSWORD = "another horse and battery"


@pytest.fixture
async def settings(settings: Settings) -> Settings:
    """An address must be verified before its account can be used."""
    return settings.model_copy(update={"require_verified_email": True})


async def newcomer(visitors: Visitors, username: str = "ada", **fields: str) -> Visitor:
    """A visitor who has just registered."""
    visitor = Visitor(visitors.app, username)
    answer = await visitor.register(**fields)
    assert (answer.status, answer.location) == (303, "/verify")
    return visitor


async def mail_to(visitors: Visitors, email: str, subject: str = VERIFY) -> str:
    """Wait until all emails are sent and return the newest with this subject."""
    await visitors.wait_for_outbox()
    return (await visitors.emails(email, subject))[0]


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


# ---- registering


async def test_a_new_account_is_not_signed_in_and_asks_for_the_code(visitors: Visitors) -> None:
    ada = await newcomer(visitors)
    page = await ada.get("/verify")
    assert page.status == 200
    assert "ada@example.org" in page.text
    assert await ada.me() is None
    assert await documents("sessions") == []
    assert (await ada.get("/account")).location == "/login?next=%2Faccount"
    code = code_in(await mail_to(visitors, ada.email))
    refused = await ada.post("/verify", code=wrong(code))
    assert (refused.status, refused.error("code")[:14]) == (422, "Incorrect code")
    answer = await ada.post("/verify", code=code)
    assert (answer.status, answer.location) == (303, "/")
    assert (await ada.me() or {})["username"] == "ada"
    assert (await visitors.anonymous().sign_in(ada.email)).location == "/", (
        "the account has the address"
    )
    user = await user_named("ada")
    assert (user.email, user.verified, user.deletes_at) == ("ada@example.org", True, None)


async def test_the_link_signs_in_the_browser_that_registered(visitors: Visitors) -> None:
    ada = await newcomer(visitors)
    link = link_in(await mail_to(visitors, ada.email))
    page = await ada.get(link)
    assert "password" not in page.fields
    assert not (await user_named("ada")).verified, "programs that scan mail open links"
    assert (await ada.post(link)).location == "/"
    assert await ada.me() is not None
    gone = await ada.get(link)
    assert (gone.status, "/account" in gone.links) == (410, True)


async def test_the_link_in_another_browser_asks_for_the_password(visitors: Visitors) -> None:
    ada = await newcomer(visitors)
    link, owner = link_in(await mail_to(visitors, ada.email)), visitors.anonymous()
    assert "password" in (await owner.get(link)).fields
    for fields in ({}, {"password": ""}, {"password": OTHER_PASSWORD}):
        answer = await owner.post(link, **fields)
        assert (answer.status, bool(answer.error("password"))) == (422, True)
        assert not (await user_named("ada")).verified
    assert (await owner.post(link, password=PASSWORD)).location == "/"
    assert await owner.me() is not None
    # The browser that registered is told, and has to sign in.
    assert (await ada.get("/verify")).location == "/login"
    assert "is verified. Sign in." in (await ada.get("/login")).text
    assert (await ada.get("/verify")).location == "/login?next=%2Fverify"


async def test_wrong_passwords_on_a_verification_link_are_limited(visitors: Visitors) -> None:
    ada = await newcomer(visitors)
    link, owner = link_in(await mail_to(visitors, ada.email)), visitors.anonymous()
    answers = [await owner.post(link, password=f"wrong {n} {PASSWORD}") for n in range(6)]
    assert [answer.status for answer in answers] == 5 * [422] + [429]
    assert (await ada.post(link)).status == 303, "the browser that registered needs no password"


async def test_a_verification_link_does_not_change_the_signed_in_user(visitors: Visitors) -> None:
    ada, bob = await newcomer(visitors), await visitors.member("bob")
    link = link_in(await mail_to(visitors, ada.email))
    assert "a different account" in (await bob.get(link)).text
    assert (await bob.post(link)).status == 422
    assert (await bob.post(link, password=PASSWORD)).location == "/account"
    assert "still signed in as bob" in (await bob.get("/account")).text
    assert (await bob.me() or {})["username"] == "bob"
    assert (await user_named("ada")).verified


async def test_an_unverified_account_is_asked_for_the_code_at_sign_in(visitors: Visitors) -> None:
    await newcomer(visitors)
    first = await mail_to(visitors, "ada@example.org")
    phone = Visitor(visitors.app, "ada")
    assert (await phone.sign_in(password=OTHER_PASSWORD)).status == 422
    token = await phone.csrf_token()
    form = {"csrf_token": token, "login": "ada", "password": PASSWORD, "remember": "y"}
    answer = await phone.send("/login?next=/posts/new", form)
    assert answer.location == "/verify?next=%2Fposts%2Fnew"
    assert await phone.me() is None
    assert (await phone.post("/account/email/again?next=/posts/new")).location == answer.location
    code = code_in(await mail_to(visitors, "ada@example.org"))
    assert (await phone.post("/verify", code=code_in(first))).status == 422
    assert (await phone.post(answer.location, code=code)).location == "/posts/new"
    (session,) = await documents("sessions")
    assert session["remembered"]


@pytest.mark.parametrize("sent", [1, 5])
async def test_other_emails_to_unverified_accounts_are_limited(
    visitors: Visitors, sent: int
) -> None:
    ada = await newcomer(visitors)
    for _ in range(sent - 1):
        assert (await ada.post("/account/email/again")).status == 303
    answer = await ada.post("/account/email/again")
    assert answer.status == (303 if sent < 5 else 429)
    if answer.status == 429:
        assert int(answer.headers["Retry-After"]) > 0
        assert "ada@example.org" in answer.text


# ---- taken addresses


async def seen(visitor: Visitor, answer: Answer) -> list[Any]:
    """Return what a visitor sees of an answer: status, headers, cookies and page."""
    headers = [item for item in answer.headers if item[0].lower() != "set-cookie"]
    cookies = sorted((cookie.name, cookie.path, cookie.expires) for cookie in visitor._jar)
    text = answer.anonymized.replace(visitor.username, "NAME").replace(visitor.email, "ADDRESS")
    return [answer.status, headers, cookies, text]


async def test_registering_a_taken_address_looks_like_a_free_one(visitors: Visitors) -> None:
    await visitors.account("taken")
    observations = []
    for username, email in (("zq1", "taken@example.org"), ("zq2", "empty@example.org")):
        writes = {name: len(await documents(name)) for name in ("users", "events", "notices")}
        visitor = Visitor(visitors.app, username, OTHER_PASSWORD)
        observed: list[Any] = [await seen(visitor, await visitor.register(email=email))]
        observed.append({n: len(await documents(n)) - count for n, count in writes.items()})
        observed.append(await seen(visitor, await visitor.get("/verify")))
        await visitors.wait_for_outbox()
        for _ in range(6):
            # Wrong with a probability of all but one in a million.
            observed.append(await seen(visitor, await visitor.post("/verify", code="000000")))
        observed.append(await seen(visitor, await visitor.post("/account/email/again")))
        await visitors.wait_for_outbox()
        other = visitor.another_device()
        observed.append(await seen(other, await other.sign_in()))
        observed.append(await seen(other, await visitor.another_device().sign_in(email)))
        observed.append(
            (await Visitor(visitors.app).register(username, email="z@example.org")).status
        )
        observations.append([str(part).replace(email, "ADDRESS") for part in observed])
    assert observations[0] == observations[1]
    message = await mail_to(visitors, "taken@example.org", TAKEN)
    assert "/login" in message
    assert not any(word in message for word in ("/verify/", "zq1", "code here"))
    assert await visitors.emails("empty@example.org", VERIFY, count=2)
    assert (await Visitor(visitors.app, "taken").sign_in("taken@example.org")).location == "/"


async def test_no_code_verifies_an_address_that_another_account_holds(visitors: Visitors) -> None:
    await visitors.account("taken")
    await newcomer(visitors, "eve", email="Taken@example.org")
    await visitors.wait_for_outbox()
    (token,) = await documents("tokens")
    assert token["code"] is None
    eve_now = await user_named("eve")
    with pytest.raises(email_address.WrongCode):
        await email_address.confirm_by_code(eve_now, "123456", key="k", tries=5, by=SYSTEM)
    assert (await Visitor(visitors.app, "taken").sign_in()).location == "/"
    assert not (await user_named("eve")).verified


async def test_an_email_to_an_unverified_address_has_no_text_of_the_visitor(
    visitors: Visitors,
) -> None:
    await newcomer(visitors, "click-here.example", email="victim@example.org")
    await visitors.anonymous().post("/forgot", email="victim@example.org")
    await visitors.wait_for_outbox()
    messages = await visitors.emails("victim@example.org", count=2)
    assert not any("click-here" in message for message in messages)
    assert any("did not ask for this" in message for message in messages)


async def test_a_taken_username_is_a_form_error(visitors: Visitors) -> None:
    await visitors.account("ada")
    await newcomer(visitors, "bob")
    for username in ("ADA", "bob"):
        answer = await visitors.anonymous().register(username, email="new@example.org")
        assert (answer.status, answer.error("username")) == (422, "This username is taken.")


# ---- unverified accounts


@pytest.mark.parametrize("username", ["ada", "other"])
async def test_a_later_registration_replaces_an_unverified_one(
    visitors: Visitors, username: str
) -> None:
    eve = await newcomer(visitors, "ada")
    first = await mail_to(visitors, eve.email)
    ada = await newcomer(
        visitors, username, email="ADA@example.org", password=OTHER_PASSWORD, confirm=OTHER_PASSWORD
    )
    assert [user["username"] for user in await documents("users")] == [username]
    assert (await eve.get(link_in(first))).status == 410
    assert (await eve.post("/verify", code="123456")).location == "/login"
    assert "replaced by a later one" in (await eve.get("/login")).text
    assert (await eve.sign_in()).status == 422
    code = code_in(await mail_to(visitors, "ADA@example.org"))
    assert (await ada.post("/verify", code=code)).location == "/"
    assert len(await documents("notices")) == 1


async def test_concurrent_registrations_of_one_address_leave_one_account(
    visitors: Visitors,
) -> None:
    people = [Visitor(visitors.app, f"p{number}") for number in range(4)]
    answers = await asyncio.gather(*(p.register(email="one@example.org") for p in people))
    assert {answer.status for answer in answers} == {303}
    assert len(await documents("users")) == 1
    await visitors.wait_for_outbox()
    (user,) = await documents("users")
    winner = next(person for person in people if person.username == user["username"])
    code = code_in((await visitors.emails("one@example.org", VERIFY))[0])
    assert (await winner.post("/verify", code=code)).location == "/"


async def test_verifying_and_replacing_at_once_leave_one_account(visitors: Visitors) -> None:
    for number in range(4):
        email = f"a{number}@example.org"
        ada = await newcomer(visitors, f"ada{number}", email=email)
        code = code_in(await mail_to(visitors, email))
        late = Visitor(visitors.app, f"late{number}")
        verified, replaced = await asyncio.gather(
            ada.post("/verify", code=code), late.register(email=email)
        )
        assert replaced.status == 303
        users = {user["username"]: user for user in await documents("users")}
        held = [name for name, user in users.items() if user["email"] == email]
        if verified.location == "/":
            assert held == [ada.username]
        else:
            assert verified.status in (303, 422)
            assert held == []
            assert ada.username not in users


async def test_an_unverified_account_is_erased_after_a_day(visitors: Visitors) -> None:
    ada = await newcomer(visitors)
    message = await mail_to(visitors, ada.email)
    user = await user_named("ada")
    assert user.deletes_at == user.created_at + timedelta(days=1)
    past = clock.now() - timedelta(seconds=1)
    assert await User.change({"_id": user.id}, {"$set": {"deletes_at": past}})
    assert (await ada.post("/verify", code=code_in(message))).status == 422
    await account_deletion.erase_now(user.id)
    assert await documents("users") == []
    assert (await ada.get("/verify")).location == "/login"
    await newcomer(visitors, "ada", email="other@example.org")


async def test_verification_keeps_the_account_for_good(visitors: Visitors) -> None:
    ada = await newcomer(visitors)
    await ada.post("/verify", code=code_in(await mail_to(visitors, ada.email)))
    assert await account_deletion.claim() is None
    assert (await documents("users", claimed_email={"$ne": None})) == []


async def test_an_accepted_invitation_replaces_an_unverified_account(
    visitors: Visitors, root: Visitor
) -> None:
    eve = await newcomer(visitors, "eve", email="ada@example.org")
    first = link_in(await mail_to(visitors, "ada@example.org"))
    invited = await root.post("/admin/invitations", email="ada@example.org", role="moderator")
    assert invited.status == 303
    link = link_in(await mail_to(visitors, "ada@example.org", "invited"))
    assert (await user_named("eve")).claimed_email, "the mailbox is not verified yet"
    ada = visitors.anonymous()
    fields = {"username": "ada", "password": PASSWORD, "confirm": PASSWORD}
    assert (await ada.post(link, **fields)).location == "/"
    assert {user["username"] for user in await documents("users")} == {"root", "ada"}
    assert (await user_named("ada")).verified
    assert (await eve.sign_in()).status == 422
    assert (await eve.post(first, password=PASSWORD)).status == 410


async def test_a_verified_change_of_address_replaces_an_unverified_account(
    visitors: Visitors,
) -> None:
    await newcomer(visitors, "eve", email="new@example.org")
    ada = await visitors.member("ada")
    assert (await ada.post("/account/email", email="new@example.org")).status == 303
    link = link_in(await mail_to(visitors, "new@example.org"))
    assert (await ada.post(link)).location == "/account"
    assert (await user_named("ada")).email == "new@example.org"
    assert await User.by_username("eve") is None


async def test_an_unverified_account_receives_no_role_and_no_factor(
    visitors: Visitors, root: Visitor
) -> None:
    await newcomer(visitors)
    ada, by = await user_named("ada"), SYSTEM
    with pytest.raises(Unverified):
        await ada.grant(await role_named("moderator"), by=by)
    change = {"$set": {"totp": {"sealed": "x", "added_at": clock.now()}}}
    with pytest.raises(Unverified):
        await enrolment.add(ada, Factor.TOTP, {}, change, by=Actor(ada.id, "ada"))
    answer = await root.post("/admin/users/ada/grants", role="moderator")
    assert "not verified" in answer.text
    stored = await user_named("ada")
    assert (len(stored.roles), stored.factors) == (1, frozenset())
    hashed = stored.password_hash
    roles = [await role_named("admin")]
    with pytest.raises(Unverified):
        await claim_account("bob", "bob@example.org", hashed, roles=roles, by=SYSTEM)


async def test_no_session_of_an_unverified_account_is_accepted(visitors: Visitors) -> None:
    ada = await visitors.member("ada")
    assert await ada.me() is not None
    unverified = {"email_verified_at": None, "must_verify": True}
    await User.change({"username": "ada"}, {"$set": unverified})
    await runtime_of(visitors.app).barrier.wait()
    assert await ada.me() is None
    (session,) = await documents("sessions")
    assert session["ended_reason"] == Reason.EMAIL_UNVERIFIED


async def test_turning_the_setting_on_asks_older_accounts_to_verify(
    visitors: Visitors, settings: Settings
) -> None:
    await email_address.require_verification(False)
    old = await visitors.account("old")
    await User.change({"_id": old.id}, {"$set": {"email_verified_at": None}})
    ada = Visitor(visitors.app, "old")
    assert (await ada.sign_in()).location == "/"
    assert await email_address.require_verification(True) == 1
    assert await ada.is_signed_out()
    # The account holds its address: a registration does not replace it.
    await newcomer(visitors, "eve", email=old.email)
    assert await mail_to(visitors, old.email, TAKEN)
    assert (await ada.sign_in(old.email)).location == "/verify"
    await ada.post("/account/email/again")
    assert (
        await ada.post("/verify", code=code_in(await mail_to(visitors, old.email)))
    ).status == 303
    assert await ada.me() is not None
    assert await email_address.require_verification(False) == 0, "the address stays unverified"
    assert (await user_named("eve")).awaits_verification


# ---- other proofs of the mailbox


async def test_a_password_reset_verifies_an_unverified_account(visitors: Visitors) -> None:
    eve = await newcomer(visitors, "eve", email="ada@example.org")
    ada = visitors.anonymous()
    await ada.post("/forgot", email="ADA@example.org")
    link = link_in(await mail_to(visitors, "ada@example.org", "Set a new password"))
    new = {"password": OTHER_PASSWORD, "confirm": OTHER_PASSWORD}
    assert (await ada.post(link, **new)).location == "/login"
    assert (await eve.get("/verify")).location == "/login"
    assert (await eve.sign_in()).status == 422
    assert (await ada.sign_in("ada@example.org", OTHER_PASSWORD)).location == "/"
    user = await user_named("eve")
    assert (user.email, user.verified, user.deletes_at) == ("ada@example.org", True, None)


async def test_administrators_see_which_addresses_are_unverified(
    visitors: Visitors, root: Visitor
) -> None:
    await visitors.account("bob")
    await newcomer(visitors)
    listed = (await root.get("/admin/users?q=ada@")).text
    assert "ada@example.org" in listed
    assert listed.count(">unverified<") == 1
    page = await root.get("/admin/users/ada")
    assert "ada@example.org" in page.text
    assert "unverified" in page.text
    assert "unverified" not in (await root.get("/admin/users/bob")).text
    assert (await root.get("/users/ada")).status == 404, "the account does not exist yet"


async def test_a_cookie_of_another_account_verifies_nothing(visitors: Visitors) -> None:
    ada, eve = await newcomer(visitors, "ada"), await newcomer(visitors, "eve")
    message = await mail_to(visitors, ada.email)
    assert (await eve.post("/verify", code=code_in(message))).status == 422
    assert (await eve.post(link_in(message))).status == 422
    assert not (await user_named("ada")).verified
    assert not (await user_named("eve")).verified


async def test_two_accounts_never_hold_one_address(visitors: Visitors) -> None:
    """The address got an account after the email was sent."""
    ada = await newcomer(visitors)
    message = await mail_to(visitors, ada.email)
    await User.change({"username": "ada"}, {"$set": {"claimed_email": "moved@example.org"}})
    await visitors.account("bob")
    await User.change({"username": "bob"}, {"$set": {"email": ada.email}})
    await User.change({"username": "ada"}, {"$set": {"claimed_email": ada.email}})
    answer = await ada.post("/verify", code=code_in(message))
    assert (answer.status, answer.error("code")) == (422, "This email address is taken.")
    assert (await user_named("bob")).email == ada.email


async def test_the_first_administrator_and_invited_users_are_verified(
    visitors: Visitors,
) -> None:
    root = visitors.anonymous()
    fields = {"username": "root", "email": "r@example.org", "password": PASSWORD}
    answer = await root.post(f"/setup/{await issue_setup()}", **fields, confirm=PASSWORD)
    assert answer.location == "/admin/users"
    assert await root.me() is not None
    assert (await user_named("root")).verified
    assert await documents("outbox") == []


async def test_an_invitation_is_a_duplicate_once_its_address_was_verified(
    visitors: Visitors, root: Visitor
) -> None:
    await root.post("/admin/invitations", email="ada@example.org", role="")
    link = link_in(await mail_to(visitors, "ada@example.org", "invited"))
    ada = await newcomer(visitors)
    await ada.post("/verify", code=code_in(await mail_to(visitors, ada.email)))
    gone = await visitors.anonymous().get(link)
    assert (gone.status, "You already have an account" in gone.text) == (410, True)
