"""Verifying an address and changing it, by link and by code (ASVS 2.3.1, 2.3.4, 6.3.7, 6.5.5).

Here verification is not required: see test_verification.
"""

import asyncio
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.models import Token, User
from quartapp.models.accounts.account import address_fields
from quartapp.models.base.actor import NOBODY
from quartapp.models.base.references import linked_id
from quartapp.runtime import runtime_of
from tests.conftest import PASSWORD
from tests.routes.authenticator import app_code, secret_on
from tests.routes.conftest import Answer, Open, Town, Visitor, code_in, documents, link_in, the_user
from tests.routes.scenes import add_passkey
from tests.security_key import Authenticator


async def newcomer(town: Town, username: str = "ada") -> tuple[Visitor, str]:
    """Somebody who has just registered, and the letter that they got."""
    visitor = Visitor(town.app, username)
    assert (await visitor.register()).status == 303
    return visitor, (await town.letters(visitor.email, "Verify"))[0]


async def next_letter(town: Town, email: str) -> str:
    """The newest, once all have been sent."""
    await town.no_more_letters()
    return (await town.letters(email, "Verify"))[0]


async def is_confirmed(username: str = "ada") -> bool:
    return (await the_user(username)).email_verified_at is not None


async def type_code(visitor: Visitor, code: str) -> Answer:
    return await visitor.post("/verify", code=code)


def another(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


async def test_the_link_verifies_when_its_button_is_pressed_and_not_before(town: Town) -> None:
    ada, letter = await newcomer(town)
    link, stranger = link_in(letter), town.nobody()
    assert "not verified" in (await ada.get("/account")).text
    for _ in range(2):
        page = await stranger.get(link)
        assert (page.status, page.headers["Referrer-Policy"]) == (200, "no-referrer")
        assert (await stranger.ask("HEAD", link)).status == 200
    assert not await is_confirmed(), "a program that looks at mail opens links"
    assert (await stranger.post(link)).status == 422
    assert not await is_confirmed(), "who reads the mail may not know the account"
    answer = await ada.post(link)
    assert (answer.status, answer.location) == (303, "/account")
    assert await is_confirmed()
    assert "not verified" not in (await ada.get("/account")).text
    assert (await stranger.get(link)).status == 410
    assert (await ada.get("/verify")).location == "/account"
    assert len(await documents("events", verb="email.confirmed")) == 1


async def test_the_code_confirms(town: Town) -> None:
    ada, letter = await newcomer(town)
    code = code_in(letter)
    answer = await type_code(ada, f" {code[:3]} {code[3:]}")
    assert (answer.status, answer.location) == (303, "/account")
    assert await is_confirmed()


@pytest.mark.parametrize("tries", [5, 3])
async def test_a_code_has_so_many_tries_also_when_they_come_at_once(
    open_town: Open, tries: int
) -> None:
    town = await open_town(tries_per_code=tries)
    ada, letter = await newcomer(town)
    wrong = another(code_in(letter))
    answers = await asyncio.gather(*(type_code(ada, wrong) for _ in range(tries + 3)))
    assert {answer.status for answer in answers} == {422}
    (token,) = await documents("tokens")
    assert token["guesses"] == tries
    late = await type_code(ada, code_in(letter))
    assert late.status == 422
    assert "Send another email" in late.error("code")
    assert not await is_confirmed()
    assert (await ada.post("/account/email/again")).status == 303
    assert (await type_code(ada, code_in(await next_letter(town, ada.email)))).status == 303
    assert await is_confirmed()


async def test_a_wrong_code_says_how_many_tries_are_left_and_is_not_shown_again(
    town: Town,
) -> None:
    ada, letter = await newcomer(town)
    wrong = another(code_in(letter))
    for left in ("4 more tries", "3 more tries", "2 more tries", "1 more try", "no more tries"):
        answer = await type_code(ada, wrong)
        assert left in answer.error("code")
        assert wrong not in answer.text


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "½½½½½½", "12345\0", "$ne"])
async def test_what_is_no_code_costs_no_try(town: Town, code: str) -> None:
    ada, _ = await newcomer(town)
    answer = await type_code(ada, code)
    assert answer.status == 422
    assert answer.error("code")
    (token,) = await documents("tokens")
    assert token["guesses"] == 0


async def test_link_and_code_die_after_ten_minutes(town: Town) -> None:
    ada, letter = await newcomer(town)
    (token,) = await documents("tokens")
    assert token["expires_at"] - token["created_at"] == timedelta(minutes=10)
    past = clock.now() - timedelta(seconds=1)
    await Token.change_all({}, {"$set": {"expires_at": past}})
    assert (await ada.get(link_in(letter))).status == 410
    assert (await ada.post(link_in(letter))).status == 410
    assert (await type_code(ada, code_in(letter))).status == 422
    assert not await is_confirmed()


async def test_a_new_letter_makes_the_old_one_void_and_there_is_a_limit(open_town: Open) -> None:
    town = await open_town(limit_letter="3 per 2 hours")
    ada, first = await newcomer(town)
    for _ in range(2):
        assert (await ada.post("/account/email/again")).status == 303
    newest = await next_letter(town, ada.email)
    assert (await ada.get(link_in(first))).status == 410
    refused = await ada.post("/account/email/again")
    assert refused.status == 429
    assert 7100 < int(refused.headers["Retry-After"]) <= 7200
    assert "At most 3 emails are sent within 2 hours." in refused.text
    assert "sent in 2 hours." in refused.text
    changing = await ada.post("/account/email", email="new@example.org")
    assert changing.status == 429
    assert changing.fields["email"] == "new@example.org"
    assert (await the_user("ada")).pending_email is None
    assert (await ada.post(link_in(newest))).status == 303
    # Two hours later.
    user = await the_user("ada")
    earlier = [at - timedelta(hours=2) for at in user.letters_asked]
    await User.change({"_id": user.id}, {"$set": {"letters_asked": earlier}})
    assert (await ada.post("/account/email", email="new@example.org")).status == 303


async def test_of_many_who_ask_at_once_no_more_than_the_limit_get_a_letter(town: Town) -> None:
    ada, _ = await newcomer(town)
    token = await ada.csrf_token()
    answers = await asyncio.gather(
        *(ada.send("/account/email/again", {"csrf_token": token}) for _ in range(8))
    )
    assert sorted(a.status for a in answers) == 4 * [303] + 4 * [429]
    await town.no_more_letters()
    letters = await town.letters(ada.email)
    assert len(letters) <= 5
    # None is sent once a newer one is asked for, so the last to come is one that works.
    assert (await ada.post(link_in(letters[0]))).status == 303


async def test_a_new_address_counts_once_it_is_confirmed_and_the_old_one_is_told(
    town: Town, ada: Visitor
) -> None:
    answer = await ada.post("/account/email", email="new@example.org")
    assert (answer.status, answer.location) == (303, "/verify")
    (letter,) = await town.letters("new@example.org")
    assert (await the_user("ada")).email == "ada@example.org"
    assert "new@example.org" in (await ada.get("/account")).text
    assert (await ada.post(link_in(letter))).location == "/account"
    user = await the_user("ada")
    assert (user.email, user.pending_email) == ("new@example.org", None)
    assert user.email_verified_at is not None
    (told,) = await town.letters("ada@example.org")
    assert "another email address" in told
    assert "new@example.org" not in told
    (notice,) = await documents("notices", kind="email.changed")
    assert notice["user"].id == user.id
    (event,) = await documents("events", verb="email.changed")
    assert event["details"] == {"was": "ada@example.org", "verified": True}
    assert await ada.me() is not None, "no rights have changed"
    assert (await town.nobody().sign_in("new@example.org")).status == 303
    assert (await town.nobody().sign_in("ada@example.org")).status == 422


async def test_the_code_of_a_new_address_is_typed_on_the_same_page(
    town: Town, ada: Visitor
) -> None:
    await ada.post("/account/email", email="new@example.org")
    (letter,) = await town.letters("new@example.org")
    assert "new@example.org" in (await ada.get("/verify")).text
    assert (await type_code(ada, code_in(letter))).status == 303
    assert (await the_user("ada")).email == "new@example.org"


async def test_a_change_can_be_taken_back_or_changed_and_its_link_is_dead(
    town: Town, ada: Visitor
) -> None:
    await ada.post("/account/email", email="first@example.org")
    (first,) = await town.letters("first@example.org")
    await ada.post("/account/email", email="second@example.org")
    (second,) = await town.letters("second@example.org")
    assert (await ada.post(link_in(first))).status == 410
    assert (await ada.post("/account/email/keep")).status == 303
    assert (await ada.post(link_in(second))).status == 410
    assert (await the_user("ada")).email == "ada@example.org"


async def test_a_change_dies_with_the_password_that_it_was_asked_under(
    town: Town, ada: Visitor
) -> None:
    await ada.post("/account/email", email="eve@example.org")
    (letter,) = await town.letters("eve@example.org")
    changed = {"password": "another horse and battery", "confirm": "another horse and battery"}
    assert (
        await ada.post("/account/password", current_password=ada.password, **changed)
    ).status == 303
    assert (await town.nobody().post(link_in(letter))).status == 410
    assert (await type_code(ada, code_in(letter))).location == "/account"
    await ada.post("/account/email/again")
    await town.no_more_letters()
    assert len(await town.letters("eve@example.org")) == 1, "the wish is gone with the password"
    assert (await the_user("ada")).email == "ada@example.org"


async def test_whose_address_it_is_already_learns_only_who_reads_its_mail(
    town: Town, ada: Visitor
) -> None:
    await town.account("bob")
    taken = await ada.post("/account/email", email="BOB@example.org")
    free = await ada.post("/account/email", email="free@example.org")
    assert (taken.status, taken.location) == (free.status, free.location)
    await ada.post("/account/email", email="BOB@example.org")
    await town.no_more_letters()
    assert not await documents("tokens", code={"$ne": None}, used_at=None)
    told = await town.letters("bob@example.org", "You already have an account")
    assert not any("/verify/" in letter for letter in told)
    assert (await type_code(ada, "123456")).status == 422
    assert (await the_user("ada")).email == "ada@example.org"
    assert (await the_user("bob")).email == "bob@example.org"


async def test_of_many_who_confirm_one_address_at_once_one_gets_it(town: Town) -> None:
    people = [await town.member(f"p{number}") for number in range(5)]
    for person in people:
        await person.post("/account/email", email="shared@example.org")
    letters = await town.letters("shared@example.org", count=5)
    answers = await asyncio.gather(
        *(town.nobody().post(link_in(letter), password=PASSWORD) for letter in letters)
    )
    assert sorted(answer.status for answer in answers) == [303] + 4 * [422]
    assert len(await documents("users", email="shared@example.org")) == 1


async def test_one_link_pressed_many_times_at_once_confirms_once(town: Town) -> None:
    ada, letter = await newcomer(town)
    token = await ada.csrf_token()
    answers = await asyncio.gather(
        *(ada.send(link_in(letter), {"csrf_token": token}) for _ in range(5))
    )
    assert sorted(answer.status for answer in answers) == [303] + 4 * [410]
    assert len(await documents("events", verb="email.confirmed")) == 1


async def test_somebody_elses_code_is_none(town: Town) -> None:
    _, letter = await newcomer(town)
    eve, _ = await newcomer(town, "eve")
    answer = await type_code(eve, code_in(letter))
    assert answer.status == 422
    assert not await is_confirmed("ada")
    assert not await is_confirmed("eve")


async def test_the_address_one_has_is_no_new_one(town: Town, ada: Visitor) -> None:
    await User.change({"username": "ada"}, {"$set": {"email_verified_at": clock.now()}})
    answer = await ada.post("/account/email", email="ada@example.org")
    assert answer.status == 422
    assert answer.error("email")
    assert (await ada.post("/account/email", email="no address")).status == 422
    assert await documents("outbox") == []


async def test_neither_code_nor_link_stands_in_the_database(town: Town) -> None:
    _, letter = await newcomer(town)
    everything = "".join([str(await documents(name)) for name in ("tokens", "users", "events")])
    assert link_in(letter).rpartition("/")[2] not in everything
    (token,) = await documents("tokens")
    assert code_in(letter) not in str(token)
    assert len(token["code"]) == 64


async def test_a_sign_in_from_a_browser_not_seen_before_is_told(town: Town) -> None:
    ada, letter = await newcomer(town)
    await ada.post(link_in(letter))
    await ada.post("/logout")
    assert (await ada.sign_in()).status == 303
    other = ada.another_device()
    assert (await other.sign_in()).status == 303
    (told,) = await town.letters(ada.email, "Signed in")
    assert "/account/timeline" in told
    await other.post("/logout")
    assert (await other.sign_in()).status == 303
    await town.no_more_letters()
    assert len(await town.letters(ada.email, "Signed in")) == 1, "by now it is known"


async def test_a_changed_password_is_told(town: Town, ada: Visitor) -> None:
    changed = {"password": "another horse and battery", "confirm": "another horse and battery"}
    await ada.post("/account/password", current_password=ada.password, **changed)
    (told,) = await town.letters(ada.email, "Your password was changed")
    assert "another horse" not in told


# ---- undoing a change


async def move(town: Town, visitor: Visitor, email: str) -> None:
    """Change the address and verify the new one."""
    assert (await visitor.post("/account/email", email=email)).location == "/verify"
    await town.no_more_letters()
    assert (await visitor.post(link_in((await town.letters(email, "Verify"))[0]))).status == 303


async def undo_link(town: Town, email: str) -> str:
    await town.no_more_letters()
    return link_in((await town.letters(email, "Your email address was changed"))[0])


async def test_a_hijacked_account_is_taken_back_by_its_old_address(town: Town) -> None:
    ada = await town.member("ada")
    thief = ada.twin()
    await move(town, thief, "eve@example.org")
    link = await undo_link(town, "ada@example.org")
    # What the intruder does next changes nothing about it.
    new = "quite another horse and battery"
    sent = {"current_password": thief.password, "password": new, "confirm": new}
    assert (await thief.post("/account/password", **sent)).status == 303
    await move(town, thief, "mallory@example.org")
    theirs = await undo_link(town, "eve@example.org")
    await town.nobody().post("/forgot", email="mallory@example.org")
    await town.no_more_letters()
    reset = link_in((await town.letters("mallory@example.org", "Set a new password"))[0])

    owner = town.nobody()
    page = await owner.get(link)
    assert (page.status, page.headers["Referrer-Policy"]) == (200, "no-referrer")
    assert "ada@example.org" in page.text
    assert "mallory" not in page.text
    assert (await the_user("ada")).email == "mallory@example.org", "a page that is opened"
    answer = await owner.post(link)
    assert (answer.status, answer.location[:7]) == (303, "/reset/")
    user = await the_user("ada")
    assert (user.email, user.pending_email) == ("ada@example.org", None)
    assert user.email_verified_at is not None
    assert await thief.me() is None
    for password in (new, ada.password):
        assert (await thief.another_device().sign_in(password=password)).status == 422
    for void in (link, theirs, reset):
        assert (await town.nobody().get(void)).status == 410
        assert (await town.nobody().post(void)).status == 410
    mine = "my own horse and battery, again"
    assert (await owner.post(answer.location, password=mine, confirm=mine)).location == "/login"
    assert (await town.nobody().sign_in("ada@example.org", mine)).status == 303
    (event,) = await documents("events", verb="email.restored")
    assert event["details"] == {"was": "mallory@example.org"}


async def test_undoing_removes_the_factors_of_the_intruder_and_no_others(town: Town) -> None:
    thief = await town.member("ada")
    assert (await add_passkey(thief, Authenticator(), name="of the owner")).status == 303
    await move(town, thief, "eve@example.org")
    assert (await add_passkey(thief, Authenticator(), name="of the thief")).status == 303
    path = "/account/factors/totp"
    code = app_code(secret_on(await thief.get(path)))
    assert (await thief.post(path, code=code)).status == 303
    assert (await town.nobody().post(await undo_link(town, "ada@example.org"))).status == 303
    (passkey,) = await documents("passkeys")
    user = await the_user("ada")
    assert passkey["name"] == "of the owner"
    assert [linked_id(link) for link in user.passkeys] == [passkey["_id"]]
    assert (user.totp, user.recovery_codes) == (None, [])


async def test_an_intruder_with_the_newer_link_cannot_void_the_older_one(town: Town) -> None:
    thief = await town.member("ada")
    await move(town, thief, "eve@example.org")
    link = await undo_link(town, "ada@example.org")
    await move(town, thief, "mallory@example.org")
    assert (await town.nobody().post(await undo_link(town, "eve@example.org"))).status == 303
    assert (await the_user("ada")).email == "eve@example.org"
    assert (await town.nobody().post(link)).status == 303
    assert (await the_user("ada")).email == "ada@example.org"


async def test_an_email_about_a_change_that_was_undone_meanwhile_is_not_sent(town: Town) -> None:
    thief = await town.member("ada")
    await move(town, thief, "eve@example.org")
    link = await undo_link(town, "ada@example.org")
    postman = runtime_of(town.app).outbox_worker
    user = await the_user("ada")
    await thief.post("/account/email", email="mallory@example.org")
    await town.no_more_letters()
    verify = link_in((await town.letters("mallory@example.org", "Verify"))[0])
    await postman.stop()
    assert (await thief.post(verify)).status == 303
    assert (await town.nobody().post(link)).status == 303
    await postman.deliver()
    assert await documents("outbox") == []
    told = await town.letters("eve@example.org", "Your email address was changed", count=0)
    assert told == []
    assert user.email == "eve@example.org"


@pytest.mark.parametrize("state", ["closed", "disabled", "taken", "late", "unverified"])
async def test_what_a_change_of_address_can_be_undone_in(town: Town, state: str) -> None:
    thief = await town.member("ada")
    user = await the_user("ada")
    if state == "unverified":
        await User.change({"_id": user.id}, {"$set": {"email_verified_at": None}})
    await move(town, thief, "eve@example.org")
    await town.no_more_letters()
    if state == "unverified":
        assert await town.letters("ada@example.org", count=0) == []
        assert await documents("tokens", purpose="undo") == []
        return
    link = await undo_link(town, "ada@example.org")
    if state == "closed":
        assert (await thief.post("/account/deactivate")).status == 303
    elif state == "disabled":
        await user.disable(by=NOBODY)
    elif state == "taken":
        await town.account("other")
        other = await the_user("other")
        await User.change({"_id": other.id}, {"$set": address_fields("ada@example.org")})
    elif state == "late":
        past = clock.now() - timedelta(seconds=1)
        await Token.change_all({"purpose": "undo"}, {"$set": {"expires_at": past}})
    answer = await town.nobody().post(link)
    assert answer.status == {"closed": 303, "disabled": 410, "taken": 422, "late": 410}[state]
    assert ((await the_user("ada")).email == "ada@example.org") is (state == "closed")
    if state == "taken":
        assert "Another account now uses" in answer.text
        assert (await town.nobody().get(link)).status == 200, "the link is as good as before"


async def test_of_many_who_undo_at_once_one_does(town: Town) -> None:
    thief = await town.member("ada")
    await move(town, thief, "eve@example.org")
    link = await undo_link(town, "ada@example.org")
    visitors = [town.nobody() for _ in range(5)]
    answers = await asyncio.gather(*(visitor.post(link) for visitor in visitors))
    assert sorted(answer.status for answer in answers) == [303, 410, 410, 410, 410]
