"""Abuse is slowed down, and nobody locks somebody else out with it (ASVS 2.4.1, 6.1.1, 6.3.1)."""

import asyncio
from typing import Any

import pytest
from quart.testing.connections import WebsocketResponseError

from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import NOBODY
from quartapp.models.limits.failed_attempts import Guesses
from quartapp.runtime import runtime_of
from tests.routes.conftest import ORIGIN, SESSION_COOKIE, Open, Town, Visitor, code_in, the_user
from tests.routes.scenes import unverify
from tests.routes.test_forgotten import a_link
from tests.routes.test_invitations import a_link as an_invitation
from tests.routes.test_signing_in import counted

WRONG = "something else altogether"


async def fail(visitor: Visitor, times: int, login: str = "ada") -> list[int]:
    return [(await visitor.sign_in(login, WRONG)).status for _ in range(times)]


async def let_pass(seconds: float) -> None:
    back = -int(seconds * 1000)
    fields = {name: {"$add": [f"${name}", back]} for name in ("until", "forget_at")}
    await Guesses.get_motor_collection().update_many({}, [{"$set": fields}])


async def test_after_five_failures_even_the_right_password_must_wait_and_is_not_looked_at(
    ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = ada.another_device()
    assert await fail(stranger, 5) == [422] * 5
    with monkeypatch.context() as patch:
        hashed = counted(patch)
        refused = await stranger.sign_in()
        assert hashed() == 0
    assert refused.status == 429
    assert refused.headers["Retry-After"] == "1"
    assert "Try again in 1 second, at " in refused.text
    assert refused.fields["login"] == "ada"
    assert ada.password not in refused.text
    # Other spellings of the name are the same account.
    assert await fail(stranger, 1, " ADA ") == [429]
    await let_pass(1)
    assert await fail(stranger, 2) == [422, 429]
    await let_pass(2)
    assert (await stranger.sign_in()).status == 303
    # And then all is forgiven.
    await stranger.post("/logout")
    assert await fail(stranger.another_device(), 5) == [422] * 5


async def test_a_stranger_locks_nobody_out_of_a_browser_or_an_address_that_is_known(
    ada: Visitor,
) -> None:
    await ada.post("/logout")
    neighbour = ada.another_device()
    assert (await fail(neighbour, 7))[-1] == 429
    # All over the world, until the account's allowance is used up for whoever is not known.
    found = [
        status
        for number in range(4)
        for status in await fail(ada.another_device(f"198.51.100.{number}"), 3)
    ]
    assert found == [422] * 10 + [429] * 2
    assert (await ada.another_device("203.0.113.9").sign_in()).status == 429
    # By its cookie, also from an address where nobody has been.
    ada.address = "203.0.113.10"
    assert (await ada.sign_in()).status == 303
    await ada.post("/logout")
    ada.address = "127.0.0.1"
    assert (await ada.sign_in()).status == 303
    # By its address, once the neighbour's own failures were waited for.
    await let_pass(4)
    assert (await ada.another_device().sign_in()).status == 303


async def test_a_browser_that_is_known_to_one_account_is_a_stranger_to_another(
    ada: Visitor, town: Town
) -> None:
    await town.account("victim")
    await ada.post("/logout")
    assert await fail(ada, 6, "victim") == [422] * 5 + [429]
    # With its own cookie it has five tries at its own account, and no more.
    assert await fail(ada, 6) == [422] * 5 + [429]


async def test_a_cookie_that_somebody_made_up_is_no_known_browser(ada: Visitor) -> None:
    statuses = []
    for number in range(6):
        stranger = ada.another_device()
        stranger.client.set_cookie("localhost", "quartapp_browser", f"made-up-{number}")
        statuses += await fail(stranger, 1)
    assert statuses == [422] * 5 + [429]


@pytest.mark.parametrize("typed", ["a\u00adda", "ad\u200ba", "ａda", "a\u00adda@example.org"])  # noqa: RUF001
async def test_invisible_characters_reveal_no_account_and_reach_none(
    ada: Visitor, town: Town, typed: str
) -> None:
    """The limits and the look-up fold a login in one way, whether or not there is an account."""
    plain = typed.translate({0xAD: "", 0x200B: "", 0xFF41: "a"})
    seen = []
    for number, (used_up, tried) in enumerate(((plain, typed), ("nobody", "no\u00adbody"))):
        stranger = Visitor(town.app, address=f"192.0.2.{number}")
        assert (await fail(stranger, 6, used_up))[-1] == 429
        seen.append(await fail(stranger, 2, tried))
    assert seen == [[422] * 2] * 2
    other = Visitor(town.app, address="192.0.2.99")
    assert (await other.sign_in(typed, ada.password)).status == 422


async def test_all_spellings_of_an_address_share_one_limit(town: Town) -> None:
    await register_account("ida", "ida@bücher.example", "hash", roles=[], by=NOBODY)
    spellings = ("ida@bücher.example", "ida@xn--bcher-kva.example", "IDA@BÜCHER.example")
    stranger = Visitor(town.app, address="192.0.2.1")
    statuses = [(await stranger.sign_in(spellings[i % 3], WRONG)).status for i in range(6)]
    assert statuses == [422] * 5 + [429]


async def test_names_that_nobody_has_are_limited_as_those_that_somebody_has(
    ada: Visitor, town: Town
) -> None:
    del ada
    await town.account("closed")
    await (await the_user("closed")).disable(by=NOBODY)
    seen = []
    for number, login in enumerate(("ada", "nobody-at-all", "closed", "nobody@example.org")):
        stranger = Visitor(town.app, address=f"192.0.2.{number}")
        answers = [await stranger.sign_in(login, WRONG) for _ in range(6)]
        seen.append([(each.status, each.headers.get("Retry-After")) for each in answers])
    assert seen[0] == [(422, None)] * 5 + [(429, "1")]
    assert seen[1:] == seen[:1] * 3


async def test_a_name_and_an_address_of_one_account_do_not_tell_that_they_belong_together(
    ada: Visitor,
) -> None:
    stranger = ada.another_device()
    await fail(stranger, 6)
    assert await fail(stranger, 1, "ada@example.org") == [422]


async def test_one_address_that_tries_everybody_is_slowed_down_and_its_neighbours_are_not(
    open_town: Open,
) -> None:
    town = await open_town(limit_sign_in_address="6 per 5 minutes")
    await town.account("ada")
    there = [Visitor(town.app, address=f"2001:db8:0:1::{number}") for number in range(8)]
    statuses = [(await each.sign_in(f"u-{i}", WRONG)).status for i, each in enumerate(there)]
    assert statuses == [422] * 6 + [429] * 2
    assert (await Visitor(town.app, "ada", address="2001:db8:0:2::1").sign_in()).status == 303
    assert (await Visitor(town.app, "ada", address="192.0.2.1").sign_in()).status == 303
    # Who is known there goes on.
    known = Visitor(town.app, "ada", address="192.0.2.1")
    assert (await known.sign_in()).status == 303
    await known.post("/logout")
    known.address = "2001:db8:0:1::8"
    assert (await known.sign_in()).status == 303


async def test_an_office_signs_in_through_one_address_and_uses_nothing_up(
    open_town: Open,
) -> None:
    town = await open_town(
        limit_sign_in_address="3 per 5 minutes",
        limit_sign_in_account="3 per 5 minutes",
        limit_sign_in="3 per 5 minutes",
    )
    people = [f"person-{number}" for number in range(12)]
    for name in people:
        await town.account(name)
    office = [Visitor(town.app, name, address="192.0.2.1") for name in people]
    answers = await asyncio.gather(*(each.sign_in() for each in office))
    assert [answer.status for answer in answers] == [303] * 12
    # One person on many devices at once, too.
    devices = [office[0].another_device("192.0.2.1") for _ in range(12)]
    answers = await asyncio.gather(*(each.sign_in() for each in devices))
    assert [answer.status for answer in answers] == [303] * 12


async def test_failures_on_one_worker_count_on_the_others(open_town: Open) -> None:
    first, second = await open_town(), await open_town()
    await first.account("ada")
    # Each worker's cookie for visitors is signed with the same key.
    here, there = Visitor(first.app, "ada"), Visitor(second.app, "ada")
    assert await fail(here, 3) == [422] * 3
    assert await fail(there, 3) == [422] * 2 + [429]
    assert await fail(here, 1) == [429]


async def test_so_many_at_once_are_no_more_than_the_limit_allows(ada: Visitor) -> None:
    strangers = [ada.another_device() for _ in range(30)]
    tokens = [await each.csrf_token() for each in strangers]
    answers = await asyncio.gather(
        *(
            each.send("/login", {"csrf_token": token, "login": "ada", "password": WRONG})
            for each, token in zip(strangers, tokens, strict=True)
        )
    )
    statuses = [answer.status for answer in answers]
    assert statuses.count(422) == 5
    assert set(statuses) <= {422, 429, 503}
    assert all("Retry-After" in each.headers for each in answers if each.status != 422)


async def test_whoever_has_the_cookies_of_many_has_one_allowance_for_their_passwords(
    open_town: Open,
) -> None:
    town = await open_town(limit_sign_in_address="3 per 5 minutes")
    owners = [await town.member(name) for name in ("ada", "bob")]
    thieves = [town.nobody() for _ in owners]
    for thief, owner in zip(thieves, owners, strict=True):
        thief.client.set_cookie("localhost", SESSION_COOKIE, owner.token)
    found = [(await thief.post("/confirm", password=WRONG)).status for thief in thieves * 2]
    assert found == [422] * 3 + [429]
    new = {"password": "quite another horse", "confirm": "quite another horse"}
    refused = await thieves[0].post("/account/password", current_password=WRONG, **new)
    assert refused.status == 429
    # In their own browsers, at the same address, they are not kept from it.
    for owner in owners:
        assert (await owner.post("/confirm", password=owner.password)).status == 303


async def test_many_accounts_at_one_address_have_one_allowance_for_codes(open_town: Open) -> None:
    town = await open_town(limit_sign_in_address="3 per 5 minutes")
    people = [Visitor(town.app, name, address="192.0.2.1") for name in ("ada", "bob")]
    codes = []
    for person in people:
        assert (await person.register()).status == 303
        codes.append(code_in((await town.letters(person.email, "Verify"))[0]))
    wrong = next(f"{n:06}" for n in range(3) if f"{n:06}" not in codes)
    found = [await person.post("/verify", code=wrong) for person in people * 2]
    assert [answer.status for answer in found] == [422] * 3 + [429]
    assert found[-1].headers["Retry-After"] == "1"
    assert "Try again in 1 second" in found[-1].text
    # What was not looked at has cost no try, and a right one none of the address.
    people[1].address = "192.0.2.2"
    assert "3 more tries" in (await people[1].post("/verify", code=wrong)).error("code")
    assert (await people[1].post("/verify", code=codes[1])).status == 303
    await let_pass(1)
    assert (await people[0].post("/verify", code=codes[0])).status == 303


async def test_registrations_from_one_address_have_a_limit_and_lose_nothing_typed(
    open_town: Open,
) -> None:
    town = await open_town(limit_registration="3 per hour")
    # What is refused before anything is looked up costs nothing.
    for _ in range(5):
        assert (await town.nobody().register("weak", password="short")).status == 422
    assert (await town.nobody().register("one")).status == 303
    assert (await town.nobody().register("two")).status == 303
    # To ask whether a name is taken costs as much.
    assert (await town.nobody().register("one")).status == 422
    refused = await town.nobody().register("three")
    assert refused.status == 429
    assert 3500 < int(refused.headers["Retry-After"]) <= 3600
    assert "Try again in " in refused.text
    assert (refused.fields["username"], refused.fields["password"]) == ("three", "")
    assert (await Visitor(town.app, "four", address="192.0.2.1").register()).status == 303


async def test_letters_for_the_forgetful_have_a_limit_for_each_address(open_town: Open) -> None:
    town = await open_town(limit_recovery="3 per hour")
    await town.account("ada")
    there = Visitor(town.app, address="192.0.2.1")
    answers = [await there.post("/forgot", email="ada@example.org") for _ in range(4)]
    assert [answer.status for answer in answers] == [303] * 3 + [429]
    assert int(answers[3].headers["Retry-After"]) > 0
    assert answers[3].fields["email"] == "ada@example.org"
    elsewhere = Visitor(town.app, address="192.0.2.2")
    assert (await elsewhere.post("/forgot", email="ada@example.org")).status == 303


async def test_while_the_queue_for_passwords_is_full_each_form_comes_back_with_what_was_typed(
    town: Town, root: Visitor, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {"password": "quite another horse", "confirm": "quite another horse"}
    stale = ada.another_device()
    await stale.sign_in()
    await stale.grow_stale()
    forms: list[tuple[Visitor, str, dict[str, str]]] = [
        (town.nobody(), "/register", {"username": "bob", "email": "bob@example.org", **new}),
        (town.nobody(), "/login", {"login": "ada", "password": ada.password}),
        (town.nobody(), await a_link(town), new),
        (town.nobody(), await an_invitation(town, root), {"username": "bob", **new}),
        (ada, "/account/password", {"current_password": ada.password, **new}),
        (ada, "/confirm", {"password": ada.password}),
        (stale, "/account/email", {"email": "new@example.org", "password": ada.password}),
    ]
    monkeypatch.setattr(runtime_of(town.app).hasher, "_room", 0)
    for visitor, path, typed in forms:
        answer = await visitor.post(path, **typed)
        assert (answer.status, int(answer.headers["Retry-After"])) == (503, 2), path
        assert "Try again in a moment" in answer.text, path
        secret = {"password", "confirm", "current_password"}
        kept = {name: answer.fields[name] for name in typed if name not in secret}
        assert kept == {name: typed[name] for name in kept}, path
        assert f'action="{path}"' in answer.text, path
        assert "password" in answer.fields, path
        assert answer.fields["password"] == "", path


async def test_many_accounts_cannot_fill_the_mailbox_of_somebody_else(open_town: Open) -> None:
    town = await open_town(limit_letter_address="3 per day")
    ada, bob = await town.member("ada"), await town.member("bob")
    found = [
        await ada.post("/account/email", email="victim@example.org"),
        await ada.post("/account/email/again"),
        await bob.post("/account/email", email="VICTIM@example.org"),
        await bob.post("/account/email/again"),
        await ada.post("/account/email", email="victim@example.org"),
    ]
    assert [answer.status for answer in found] == [303] * 3 + [429] * 2
    assert all(int(answer.headers["Retry-After"]) > 3600 for answer in found[3:])
    assert found[4].fields["email"] == "victim@example.org"
    # The one an account has is not counted, so that nobody can use that up for its owner.
    await unverify(ada)
    assert (await ada.post("/account/email", email="ada@example.org")).status == 303
    await town.no_more_letters()
    assert len(await town.letters("ada@example.org", "Verify")) == 1


@pytest.mark.parametrize("limit", ["limit_handshake_user", "limit_handshake_address"])
async def test_handshakes_have_a_limit_of_their_own(open_town: Open, limit: str) -> None:
    town = await open_town(**{limit: "2 per minute"})
    ada, bob = await town.member("ada"), await town.member("bob")
    assert [await knock(ada), await knock(ada)] == [101, 101]
    async with ada.client.websocket(
        "/ws", headers={"Origin": ORIGIN}, scope_base=ada.scope
    ) as socket:
        with pytest.raises(WebsocketResponseError) as refused:
            await socket.receive_json()
    assert refused.value.response.status_code == 429
    assert 0 < int(refused.value.response.headers["Retry-After"]) <= 60
    # By user, others go on from the same address; by address, the user does from another.
    if limit == "limit_handshake_user":
        assert await knock(bob) == 101
    else:
        assert await knock(bob) == 429
        ada.address = "192.0.2.1"
        assert await knock(ada) == 101


async def knock(visitor: Visitor, origin: str = ORIGIN) -> int:
    headers: dict[str, Any] = {"Origin": origin}
    async with visitor.client.websocket("/ws", headers=headers, scope_base=visitor.scope) as socket:
        try:
            await socket.receive_json()
        except WebsocketResponseError as refused:
            return refused.response.status_code
    return 101
