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
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.factors import enrolment
from quartapp.models.factors.factor import Factor
from quartapp.models.privacy import account_deletion
from quartapp.models.sessions.reason import Reason
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.routes.conftest import (
    Answer,
    Town,
    Visitor,
    code_in,
    documents,
    link_in,
    role_named,
    the_user,
)

VERIFY, TAKEN = "Verify your email address", "You already have an account"
OTHER_PASSWORD = "another horse and battery"


@pytest.fixture
async def settings(settings: Settings) -> Settings:
    """An address must be verified before its account can be used."""
    return settings.model_copy(update={"require_verified_email": True})


async def newcomer(town: Town, username: str = "ada", **fields: str) -> Visitor:
    """A visitor who has just registered."""
    visitor = Visitor(town.app, username)
    answer = await visitor.register(**fields)
    assert (answer.status, answer.location) == (303, "/verify")
    return visitor


async def mail_to(town: Town, email: str, subject: str = VERIFY) -> str:
    """The newest mail of this subject, once all mail has been sent."""
    await town.no_more_letters()
    return (await town.letters(email, subject))[0]


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


# ---- registering


async def test_a_new_account_is_not_signed_in_and_asks_for_the_code(town: Town) -> None:
    ada = await newcomer(town)
    page = await ada.get("/verify")
    assert page.status == 200
    assert "ada@example.org" in page.text
    assert await ada.me() is None
    assert await documents("sessions") == []
    assert (await ada.get("/account")).location == "/login?next=%2Faccount"
    code = code_in(await mail_to(town, ada.email))
    refused = await ada.post("/verify", code=wrong(code))
    assert (refused.status, refused.error("code")[:14]) == (422, "Incorrect code")
    answer = await ada.post("/verify", code=code)
    assert (answer.status, answer.location) == (303, "/")
    assert (await ada.me() or {})["username"] == "ada"
    assert (await town.nobody().sign_in(ada.email)).location == "/", "the account has the address"
    user = await the_user("ada")
    assert (user.email, user.verified, user.deletes_at) == ("ada@example.org", True, None)


async def test_the_link_signs_in_the_browser_that_registered(town: Town) -> None:
    ada = await newcomer(town)
    link = link_in(await mail_to(town, ada.email))
    page = await ada.get(link)
    assert "password" not in page.fields
    assert not (await the_user("ada")).verified, "programs that look at mail open links"
    assert (await ada.post(link)).location == "/"
    assert await ada.me() is not None
    gone = await ada.get(link)
    assert (gone.status, "/account" in gone.links) == (410, True)


async def test_the_link_in_another_browser_asks_for_the_password(town: Town) -> None:
    ada = await newcomer(town)
    link, owner = link_in(await mail_to(town, ada.email)), town.nobody()
    assert "password" in (await owner.get(link)).fields
    for fields in ({}, {"password": ""}, {"password": OTHER_PASSWORD}):
        answer = await owner.post(link, **fields)
        assert (answer.status, bool(answer.error("password"))) == (422, True)
        assert not (await the_user("ada")).verified
    assert (await owner.post(link, password=PASSWORD)).location == "/"
    assert await owner.me() is not None
    # The browser that registered is told, and has to sign in.
    assert (await ada.get("/verify")).location == "/login"
    assert "is verified. Sign in." in (await ada.get("/login")).text
    assert (await ada.get("/verify")).location == "/login?next=%2Fverify"


async def test_guesses_at_the_password_beside_a_link_are_limited(town: Town) -> None:
    ada = await newcomer(town)
    link, owner = link_in(await mail_to(town, ada.email)), town.nobody()
    answers = [await owner.post(link, password=f"wrong {n} {PASSWORD}") for n in range(6)]
    assert [answer.status for answer in answers] == 5 * [422] + [429]
    assert (await ada.post(link)).status == 303, "the browser that registered needs no password"


async def test_a_browser_that_is_signed_in_as_another_user_stays_so(town: Town) -> None:
    ada, bob = await newcomer(town), await town.member("bob")
    link = link_in(await mail_to(town, ada.email))
    assert "a different account" in (await bob.get(link)).text
    assert (await bob.post(link)).status == 422
    assert (await bob.post(link, password=PASSWORD)).location == "/account"
    assert "still signed in as bob" in (await bob.get("/account")).text
    assert (await bob.me() or {})["username"] == "bob"
    assert (await the_user("ada")).verified


async def test_signing_in_unverified_leads_to_the_code_and_not_in(town: Town) -> None:
    await newcomer(town)
    first = await mail_to(town, "ada@example.org")
    phone = Visitor(town.app, "ada")
    assert (await phone.sign_in(password=OTHER_PASSWORD)).status == 422
    token = await phone.csrf_token()
    form = {"csrf_token": token, "login": "ada", "password": PASSWORD, "remember": "y"}
    answer = await phone.send("/login?next=/posts/new", form)
    assert answer.location == "/verify?next=%2Fposts%2Fnew"
    assert await phone.me() is None
    assert (await phone.post("/account/email/again?next=/posts/new")).location == answer.location
    code = code_in(await mail_to(town, "ada@example.org"))
    assert (await phone.post("/verify", code=code_in(first))).status == 422
    assert (await phone.post(answer.location, code=code)).location == "/posts/new"
    (session,) = await documents("sessions")
    assert session["remembered"]


@pytest.mark.parametrize("sent", [1, 5])
async def test_other_mails_are_limited_for_accounts_that_are_not_verified(
    town: Town, sent: int
) -> None:
    ada = await newcomer(town)
    for _ in range(sent - 1):
        assert (await ada.post("/account/email/again")).status == 303
    answer = await ada.post("/account/email/again")
    assert answer.status == (303 if sent < 5 else 429)
    if answer.status == 429:
        assert int(answer.headers["Retry-After"]) > 0
        assert "ada@example.org" in answer.text


# ---- a taken address looks like a free one


async def seen(visitor: Visitor, answer: Answer) -> list[Any]:
    """All that a visitor sees of an answer: status, headers, cookies and page."""
    headers = [item for item in answer.headers if item[0].lower() != "set-cookie"]
    cookies = sorted((cookie.name, cookie.path, cookie.expires) for cookie in visitor._jar)
    text = answer.anonymized.replace(visitor.username, "NAME").replace(visitor.email, "ADDRESS")
    return [answer.status, headers, cookies, text]


async def test_registering_a_taken_address_looks_like_a_free_one(town: Town) -> None:
    await town.account("taken")
    stories = []
    for username, email in (("zq1", "taken@example.org"), ("zq2", "empty@example.org")):
        writes = {name: len(await documents(name)) for name in ("users", "events", "notices")}
        visitor = Visitor(town.app, username, OTHER_PASSWORD)
        story: list[Any] = [await seen(visitor, await visitor.register(email=email))]
        story.append({n: len(await documents(n)) - count for n, count in writes.items()})
        story.append(await seen(visitor, await visitor.get("/verify")))
        await town.no_more_letters()
        for _ in range(6):
            # Wrong, unless it is the one code in a million.
            story.append(await seen(visitor, await visitor.post("/verify", code="000000")))
        story.append(await seen(visitor, await visitor.post("/account/email/again")))
        await town.no_more_letters()
        other = visitor.another_device()
        story.append(await seen(other, await other.sign_in()))
        story.append(await seen(other, await visitor.another_device().sign_in(email)))
        story.append((await Visitor(town.app).register(username, email="z@example.org")).status)
        stories.append([str(part).replace(email, "ADDRESS") for part in story])
    assert stories[0] == stories[1]
    letter = await mail_to(town, "taken@example.org", TAKEN)
    assert "/login" in letter
    assert not any(word in letter for word in ("/verify/", "zq1", "code here"))
    assert await town.letters("empty@example.org", VERIFY, count=2)
    assert (await Visitor(town.app, "taken").sign_in("taken@example.org")).location == "/"


async def test_no_code_verifies_an_address_that_another_account_holds(town: Town) -> None:
    await town.account("taken")
    await newcomer(town, "eve", email="Taken@example.org")
    await town.no_more_letters()
    (token,) = await documents("tokens")
    assert token["code"] is None
    eve_now = await the_user("eve")
    with pytest.raises(email_address.WrongCode):
        await email_address.confirm_by_code(eve_now, "123456", key="k", tries=5, by=NOBODY)
    assert (await Visitor(town.app, "taken").sign_in()).location == "/"
    assert not (await the_user("eve")).verified


async def test_a_mail_to_an_unverified_address_has_no_text_of_the_visitor(town: Town) -> None:
    await newcomer(town, "click-here.example", email="victim@example.org")
    await town.nobody().post("/forgot", email="victim@example.org")
    await town.no_more_letters()
    letters = await town.letters("victim@example.org", count=2)
    assert not any("click-here" in letter for letter in letters)
    assert any("did not ask for this" in letter for letter in letters)


async def test_a_taken_username_is_a_form_error(town: Town) -> None:
    await town.account("ada")
    await newcomer(town, "bob")
    for username in ("ADA", "bob"):
        answer = await town.nobody().register(username, email="new@example.org")
        assert (answer.status, answer.error("username")) == (422, "This username is taken.")


# ---- what an unverified account claims


@pytest.mark.parametrize("username", ["ada", "other"])
async def test_a_later_registration_replaces_an_unverified_one(town: Town, username: str) -> None:
    eve = await newcomer(town, "ada")
    first = await mail_to(town, eve.email)
    ada = await newcomer(
        town, username, email="ADA@example.org", password=OTHER_PASSWORD, confirm=OTHER_PASSWORD
    )
    assert [user["username"] for user in await documents("users")] == [username]
    assert (await eve.get(link_in(first))).status == 410
    assert (await eve.post("/verify", code="123456")).location == "/login"
    assert "replaced by a later one" in (await eve.get("/login")).text
    assert (await eve.sign_in()).status == 422
    code = code_in(await mail_to(town, "ADA@example.org"))
    assert (await ada.post("/verify", code=code)).location == "/"
    assert len(await documents("notices")) == 1


async def test_of_many_registrations_of_one_address_one_remains(town: Town) -> None:
    people = [Visitor(town.app, f"p{number}") for number in range(4)]
    answers = await asyncio.gather(*(p.register(email="one@example.org") for p in people))
    assert {answer.status for answer in answers} == {303}
    assert len(await documents("users")) == 1
    await town.no_more_letters()
    (user,) = await documents("users")
    winner = next(person for person in people if person.username == user["username"])
    code = code_in((await town.letters("one@example.org", VERIFY))[0])
    assert (await winner.post("/verify", code=code)).location == "/"


async def test_verifying_and_replacing_at_once_leave_one_account(town: Town) -> None:
    for number in range(4):
        email = f"a{number}@example.org"
        ada = await newcomer(town, f"ada{number}", email=email)
        code = code_in(await mail_to(town, email))
        late = Visitor(town.app, f"late{number}")
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


async def test_an_unverified_account_is_erased_after_a_day(town: Town) -> None:
    ada = await newcomer(town)
    letter = await mail_to(town, ada.email)
    user = await the_user("ada")
    assert user.deletes_at == user.created_at + timedelta(days=1)
    past = clock.now() - timedelta(seconds=1)
    assert await User.change({"_id": user.id}, {"$set": {"deletes_at": past}})
    assert (await ada.post("/verify", code=code_in(letter))).status == 422
    await account_deletion.erase_now(user.id)
    assert await documents("users") == []
    assert (await ada.get("/verify")).location == "/login"
    await newcomer(town, "ada", email="other@example.org")


async def test_verification_keeps_the_account_for_good(town: Town) -> None:
    ada = await newcomer(town)
    await ada.post("/verify", code=code_in(await mail_to(town, ada.email)))
    assert await account_deletion.claim() is None
    assert (await documents("users", claimed_email={"$ne": None})) == []


async def test_an_accepted_invitation_replaces_an_unverified_account(
    town: Town, root: Visitor
) -> None:
    eve = await newcomer(town, "eve", email="ada@example.org")
    first = link_in(await mail_to(town, "ada@example.org"))
    invited = await root.post("/admin/invitations", email="ada@example.org", role="moderator")
    assert invited.status == 303
    link = link_in(await mail_to(town, "ada@example.org", "invited"))
    assert (await the_user("eve")).claimed_email, "the mailbox is not proven yet"
    ada = town.nobody()
    fields = {"username": "ada", "password": PASSWORD, "confirm": PASSWORD}
    assert (await ada.post(link, **fields)).location == "/"
    assert {user["username"] for user in await documents("users")} == {"root", "ada"}
    assert (await the_user("ada")).verified
    assert (await eve.sign_in()).status == 422
    assert (await eve.post(first, password=PASSWORD)).status == 410


async def test_a_verified_change_of_address_replaces_an_unverified_account(
    town: Town,
) -> None:
    await newcomer(town, "eve", email="new@example.org")
    ada = await town.member("ada")
    assert (await ada.post("/account/email", email="new@example.org")).status == 303
    link = link_in(await mail_to(town, "new@example.org"))
    assert (await ada.post(link)).location == "/account"
    assert (await the_user("ada")).email == "new@example.org"
    assert await User.by_username("eve") is None


async def test_an_unverified_account_receives_no_role_and_no_factor(
    town: Town, root: Visitor
) -> None:
    await newcomer(town)
    ada, by = await the_user("ada"), NOBODY
    with pytest.raises(Unverified):
        await ada.grant(await role_named("moderator"), by=by)
    change = {"$set": {"totp": {"sealed": "x", "added_at": clock.now()}}}
    with pytest.raises(Unverified):
        await enrolment.add(ada, Factor.TOTP, {}, change, by=Actor(ada.id, "ada"))
    answer = await root.post("/admin/users/ada/grants", role="moderator")
    assert "not verified" in answer.text
    stored = await the_user("ada")
    assert (len(stored.roles), stored.factors) == (1, frozenset())
    hashed = stored.password_hash
    roles = [await role_named("admin")]
    with pytest.raises(Unverified):
        await claim_account("bob", "bob@example.org", hashed, roles=roles, by=NOBODY)


async def test_no_session_of_an_unverified_account_is_accepted(town: Town) -> None:
    ada = await town.member("ada")
    assert await ada.me() is not None
    unverified = {"email_verified_at": None, "must_verify": True}
    await User.change({"username": "ada"}, {"$set": unverified})
    await runtime_of(town.app).barrier.passed()
    assert await ada.me() is None
    (session,) = await documents("sessions")
    assert session["ended_reason"] == Reason.EMAIL_UNVERIFIED


async def test_turning_the_setting_on_asks_older_accounts_to_verify(
    town: Town, settings: Settings
) -> None:
    await email_address.require_verification(False)
    old = await town.account("old")
    await User.change({"_id": old.id}, {"$set": {"email_verified_at": None}})
    ada = Visitor(town.app, "old")
    assert (await ada.sign_in()).location == "/"
    assert await email_address.require_verification(True) == 1
    assert await ada.is_out()
    # The account holds its address: a registration does not replace it.
    await newcomer(town, "eve", email=old.email)
    assert await mail_to(town, old.email, TAKEN)
    assert (await ada.sign_in(old.email)).location == "/verify"
    await ada.post("/account/email/again")
    assert (await ada.post("/verify", code=code_in(await mail_to(town, old.email)))).status == 303
    assert await ada.me() is not None
    assert await email_address.require_verification(False) == 0, "a claim stays a claim"
    assert (await the_user("eve")).awaits_verification


# ---- a proof of the mailbox from outside the account


async def test_a_reset_by_mail_verifies_an_account_that_was_not(town: Town) -> None:
    eve = await newcomer(town, "eve", email="ada@example.org")
    ada = town.nobody()
    await ada.post("/forgot", email="ADA@example.org")
    link = link_in(await mail_to(town, "ada@example.org", "Set a new password"))
    new = {"password": OTHER_PASSWORD, "confirm": OTHER_PASSWORD}
    assert (await ada.post(link, **new)).location == "/login"
    assert (await eve.get("/verify")).location == "/login"
    assert (await eve.sign_in()).status == 422
    assert (await ada.sign_in("ada@example.org", OTHER_PASSWORD)).location == "/"
    user = await the_user("eve")
    assert (user.email, user.verified, user.deletes_at) == ("ada@example.org", True, None)


async def test_administrators_see_which_addresses_are_unverified(town: Town, root: Visitor) -> None:
    await town.account("bob")
    await newcomer(town)
    listed = (await root.get("/admin/users?q=ada@")).text
    assert "ada@example.org" in listed
    assert listed.count("unverified") == 1
    page = await root.get("/admin/users/ada")
    assert "ada@example.org" in page.text
    assert "unverified" in page.text
    assert "unverified" not in (await root.get("/admin/users/bob")).text
    assert (await root.get("/users/ada")).status == 404, "there is no such person yet"


async def test_a_note_of_another_account_verifies_nothing(town: Town) -> None:
    ada, eve = await newcomer(town, "ada"), await newcomer(town, "eve")
    letter = await mail_to(town, ada.email)
    assert (await eve.post("/verify", code=code_in(letter))).status == 422
    assert (await eve.post(link_in(letter))).status == 422
    assert not (await the_user("ada")).verified
    assert not (await the_user("eve")).verified


async def test_two_accounts_never_hold_one_address(town: Town) -> None:
    """Past all checks: the address got an account after the mail was sent."""
    ada = await newcomer(town)
    letter = await mail_to(town, ada.email)
    await User.change({"username": "ada"}, {"$set": {"claimed_email": "moved@example.org"}})
    await town.account("bob")
    await User.change({"username": "bob"}, {"$set": {"email": ada.email}})
    await User.change({"username": "ada"}, {"$set": {"claimed_email": ada.email}})
    answer = await ada.post("/verify", code=code_in(letter))
    assert (answer.status, answer.error("code")) == (422, "This email address is taken.")
    assert (await the_user("bob")).email == ada.email


async def test_the_first_administrator_and_invited_users_are_verified(
    town: Town,
) -> None:
    root = town.nobody()
    fields = {"username": "root", "email": "r@example.org", "password": PASSWORD}
    answer = await root.post(f"/setup/{await issue_setup()}", **fields, confirm=PASSWORD)
    assert answer.location == "/admin/users"
    assert await root.me() is not None
    assert (await the_user("root")).verified
    assert await documents("outbox") == []


async def test_an_invitation_is_a_duplicate_once_its_address_was_verified(
    town: Town, root: Visitor
) -> None:
    await root.post("/admin/invitations", email="ada@example.org", role="")
    link = link_in(await mail_to(town, "ada@example.org", "invited"))
    ada = await newcomer(town)
    await ada.post("/verify", code=code_in(await mail_to(town, ada.email)))
    gone = await town.nobody().get(link)
    assert (gone.status, "You already have an account" in gone.text) == (410, True)
