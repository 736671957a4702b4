"""Limits slow down abuse without locking out others (ASVS 2.4.1, 6.1.1, 6.3.1)."""

import asyncio
from typing import Any

import pytest
from quart.testing.connections import WebsocketResponseError

from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.models.limits.failed_attempts import FailedAttempts
from quartapp.runtime import runtime_of
from tests.integration.routes.conftest import (
    ORIGIN,
    SESSION_COOKIE,
    StartApp,
    Visitor,
    Visitors,
    code_in,
    user_named,
)
from tests.integration.routes.requests import unverify
from tests.integration.routes.test_invitations import invitation_link
from tests.integration.routes.test_password_reset import reset_link
from tests.integration.routes.test_sign_in import counted

WRONG = "something else altogether"


async def fail(visitor: Visitor, times: int, login: str = "ada") -> list[int]:
    return [(await visitor.sign_in(login, WRONG)).status for _ in range(times)]


async def age_failures(seconds: float) -> None:
    back = -int(seconds * 1000)
    fields = {name: {"$add": [f"${name}", back]} for name in ("until", "forget_at")}
    await FailedAttempts.get_motor_collection().update_many({}, [{"$set": fields}])


async def test_after_five_failures_the_right_password_must_wait_too(
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
    # Other spellings of the name lead to the same account.
    assert await fail(stranger, 1, " ADA ") == [429]
    await age_failures(1)
    assert await fail(stranger, 2) == [422, 429]
    await age_failures(2)
    assert (await stranger.sign_in()).status == 303
    # A successful sign-in clears the failures.
    await stranger.post("/logout")
    assert await fail(stranger.another_device(), 5) == [422] * 5


async def test_failures_elsewhere_do_not_block_a_known_browser_or_address(
    ada: Visitor,
) -> None:
    await ada.post("/logout")
    neighbour = ada.another_device()
    assert (await fail(neighbour, 7))[-1] == 429
    # Unknown browsers at any address share the limit of the account.
    found = [
        status
        for number in range(4)
        for status in await fail(ada.another_device(f"198.51.100.{number}"), 3)
    ]
    assert found == [422] * 10 + [429] * 2
    assert (await ada.another_device("203.0.113.9").sign_in()).status == 429
    # The browser is known by its cookie, also from a new address.
    ada.address = "203.0.113.10"
    assert (await ada.sign_in()).status == 303
    await ada.post("/logout")
    ada.address = "127.0.0.1"
    assert (await ada.sign_in()).status == 303
    # The address is known, once the wait for the neighbour's failures is over.
    await age_failures(4)
    assert (await ada.another_device().sign_in()).status == 303


async def test_a_known_browser_is_known_only_to_its_account(
    ada: Visitor, visitors: Visitors
) -> None:
    await visitors.account("victim")
    await ada.post("/logout")
    assert await fail(ada, 6, "victim") == [422] * 5 + [429]
    # With its own cookie it has five tries at its own account.
    assert await fail(ada, 6) == [422] * 5 + [429]


async def test_a_made_up_cookie_is_not_a_known_browser(ada: Visitor) -> None:
    statuses = []
    for number in range(6):
        stranger = ada.another_device()
        stranger.client.set_cookie("localhost", "quartapp_browser", f"made-up-{number}")
        statuses += await fail(stranger, 1)
    assert statuses == [422] * 5 + [429]


@pytest.mark.parametrize("typed", ["a\u00adda", "ad\u200ba", "ａda", "a\u00adda@example.org"])  # noqa: RUF001
async def test_invisible_characters_match_and_reveal_no_account(
    ada: Visitor, visitors: Visitors, typed: str
) -> None:
    """The limits and the look-up normalize a login in the same way."""
    plain = typed.translate({0xAD: "", 0x200B: "", 0xFF41: "a"})
    seen = []
    for number, (used_up, tried) in enumerate(((plain, typed), ("nobody", "no\u00adbody"))):
        stranger = Visitor(visitors.app, address=f"192.0.2.{number}")
        assert (await fail(stranger, 6, used_up))[-1] == 429
        seen.append(await fail(stranger, 2, tried))
    assert seen == [[422] * 2] * 2
    other = Visitor(visitors.app, address="192.0.2.99")
    assert (await other.sign_in(typed, ada.password)).status == 422


async def test_all_spellings_of_an_address_share_one_limit(visitors: Visitors) -> None:
    await register_account("ida", "ida@bücher.example", "hash", roles=[], by=SYSTEM)
    spellings = ("ida@bücher.example", "ida@xn--bcher-kva.example", "IDA@BÜCHER.example")
    stranger = Visitor(visitors.app, address="192.0.2.1")
    statuses = [(await stranger.sign_in(spellings[i % 3], WRONG)).status for i in range(6)]
    assert statuses == [422] * 5 + [429]


async def test_unknown_and_known_names_are_limited_alike(ada: Visitor, visitors: Visitors) -> None:
    del ada
    await visitors.account("closed")
    await (await user_named("closed")).disable(by=SYSTEM)
    seen = []
    for number, login in enumerate(("ada", "nobody-at-all", "closed", "nobody@example.org")):
        stranger = Visitor(visitors.app, address=f"192.0.2.{number}")
        answers = [await stranger.sign_in(login, WRONG) for _ in range(6)]
        seen.append([(each.status, each.headers.get("Retry-After")) for each in answers])
    assert seen[0] == [(422, None)] * 5 + [(429, "1")]
    assert seen[1:] == seen[:1] * 3


async def test_limits_do_not_link_the_name_and_the_address_of_an_account(
    ada: Visitor,
) -> None:
    stranger = ada.another_device()
    await fail(stranger, 6)
    assert await fail(stranger, 1, "ada@example.org") == [422]


async def test_an_address_that_tries_many_accounts_is_limited(
    start_app: StartApp,
) -> None:
    visitors = await start_app(limit_sign_in_address="6 per 5 minutes")
    await visitors.account("ada")
    there = [Visitor(visitors.app, address=f"2001:db8:0:1::{number}") for number in range(8)]
    statuses = [(await each.sign_in(f"u-{i}", WRONG)).status for i, each in enumerate(there)]
    assert statuses == [422] * 6 + [429] * 2
    assert (await Visitor(visitors.app, "ada", address="2001:db8:0:2::1").sign_in()).status == 303
    assert (await Visitor(visitors.app, "ada", address="192.0.2.1").sign_in()).status == 303
    # A browser that is known there is not limited.
    known = Visitor(visitors.app, "ada", address="192.0.2.1")
    assert (await known.sign_in()).status == 303
    await known.post("/logout")
    known.address = "2001:db8:0:1::8"
    assert (await known.sign_in()).status == 303


async def test_successful_sign_ins_from_one_address_use_up_no_limit(
    start_app: StartApp,
) -> None:
    visitors = await start_app(
        limit_sign_in_address="3 per 5 minutes",
        limit_sign_in_account="3 per 5 minutes",
        limit_sign_in="3 per 5 minutes",
    )
    people = [f"person-{number}" for number in range(12)]
    for name in people:
        await visitors.account(name)
    office = [Visitor(visitors.app, name, address="192.0.2.1") for name in people]
    answers = await asyncio.gather(*(each.sign_in() for each in office))
    assert [answer.status for answer in answers] == [303] * 12
    # The same holds for one user on many devices at once.
    devices = [office[0].another_device("192.0.2.1") for _ in range(12)]
    answers = await asyncio.gather(*(each.sign_in() for each in devices))
    assert [answer.status for answer in answers] == [303] * 12


async def test_failures_on_one_worker_count_on_the_others(start_app: StartApp) -> None:
    first, second = await start_app(), await start_app()
    await first.account("ada")
    # Each worker's cookie for visitors is signed with the same key.
    here, there = Visitor(first.app, "ada"), Visitor(second.app, "ada")
    assert await fail(here, 3) == [422] * 3
    assert await fail(there, 3) == [422] * 2 + [429]
    assert await fail(here, 1) == [429]


async def test_concurrent_failures_stay_within_the_limit(ada: Visitor) -> None:
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


async def test_password_checks_with_stolen_sessions_share_one_limit(
    start_app: StartApp,
) -> None:
    visitors = await start_app(limit_sign_in_address="3 per 5 minutes")
    owners = [await visitors.member(name) for name in ("ada", "bob")]
    thieves = [visitors.anonymous() for _ in owners]
    for thief, owner in zip(thieves, owners, strict=True):
        thief.client.set_cookie("localhost", SESSION_COOKIE, owner.token)
    found = [(await thief.post("/confirm", password=WRONG)).status for thief in thieves * 2]
    assert found == [422] * 3 + [429]
    new = {"password": "quite another horse", "confirm": "quite another horse"}
    refused = await thieves[0].post("/account/password", current_password=WRONG, **new)
    assert refused.status == 429
    # The owners' own browsers at the same address are not limited.
    for owner in owners:
        assert (await owner.post("/confirm", password=owner.password)).status == 303


async def test_code_checks_of_many_accounts_at_one_address_share_a_limit(
    start_app: StartApp,
) -> None:
    visitors = await start_app(limit_sign_in_address="3 per 5 minutes")
    people = [Visitor(visitors.app, name, address="192.0.2.1") for name in ("ada", "bob")]
    codes = []
    for person in people:
        assert (await person.register()).status == 303
        codes.append(code_in((await visitors.emails(person.email, "Verify"))[0]))
    wrong = next(f"{n:06}" for n in range(3) if f"{n:06}" not in codes)
    found = [await person.post("/verify", code=wrong) for person in people * 2]
    assert [answer.status for answer in found] == [422] * 3 + [429]
    assert found[-1].headers["Retry-After"] == "1"
    assert "Try again in 1 second" in found[-1].text
    # A refused try does not count for the code, and a right code not for the address.
    people[1].address = "192.0.2.2"
    assert "3 more tries" in (await people[1].post("/verify", code=wrong)).error("code")
    assert (await people[1].post("/verify", code=codes[1])).status == 303
    await age_failures(1)
    assert (await people[0].post("/verify", code=codes[0])).status == 303


async def test_registrations_from_one_address_are_limited(
    start_app: StartApp,
) -> None:
    visitors = await start_app(limit_registration="3 per hour")
    # A form with an error counts too: it also says whether its name is taken.
    assert (await visitors.anonymous().register("weak", password="short")).status == 422
    assert (await visitors.anonymous().register("one")).status == 303
    # A taken name counts like a registration.
    assert (await visitors.anonymous().register("one")).status == 422
    refused = await visitors.anonymous().register("three")
    assert refused.status == 429
    assert 3500 < int(refused.headers["Retry-After"]) <= 3600
    assert "Try again in " in refused.text
    assert (refused.fields["username"], refused.fields["password"]) == ("three", "")
    assert (await Visitor(visitors.app, "four", address="192.0.2.1").register()).status == 303


async def test_reset_requests_are_limited_per_address(start_app: StartApp) -> None:
    visitors = await start_app(limit_recovery="3 per hour")
    await visitors.account("ada")
    there = Visitor(visitors.app, address="192.0.2.1")
    answers = [await there.post("/forgot", email="ada@example.org") for _ in range(4)]
    assert [answer.status for answer in answers] == [303] * 3 + [429]
    assert int(answers[3].headers["Retry-After"]) > 0
    assert answers[3].fields["email"] == "ada@example.org"
    elsewhere = Visitor(visitors.app, address="192.0.2.2")
    assert (await elsewhere.post("/forgot", email="ada@example.org")).status == 303


async def test_a_full_password_queue_keeps_the_form_as_filled(
    visitors: Visitors, root: Visitor, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {"password": "quite another horse", "confirm": "quite another horse"}
    stale = ada.another_device()
    await stale.sign_in()
    await stale.expire_authentication()
    forms: list[tuple[Visitor, str, dict[str, str]]] = [
        (visitors.anonymous(), "/register", {"username": "bob", "email": "bob@example.org", **new}),
        (visitors.anonymous(), "/login", {"login": "ada", "password": ada.password}),
        (visitors.anonymous(), await reset_link(visitors), new),
        (visitors.anonymous(), await invitation_link(visitors, root), {"username": "bob", **new}),
        (ada, "/account/password", {"current_password": ada.password, **new}),
        (ada, "/confirm", {"password": ada.password}),
        (stale, "/account/email", {"email": "new@example.org", "password": ada.password}),
    ]
    monkeypatch.setattr(runtime_of(visitors.app).hasher, "_capacity", 0)
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


async def test_many_accounts_cannot_flood_one_mailbox(start_app: StartApp) -> None:
    visitors = await start_app(limit_letter_address="3 per day")
    ada, bob = await visitors.member("ada"), await visitors.member("bob")
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
    # The current address of the account is not counted, so others cannot use up its limit.
    await unverify(ada)
    assert (await ada.post("/account/email", email="ada@example.org")).status == 303
    await visitors.wait_for_outbox()
    assert len(await visitors.emails("ada@example.org", "Verify")) == 1


@pytest.mark.parametrize("limit", ["limit_handshake_user", "limit_handshake_address"])
async def test_handshakes_are_limited_per_user_and_per_address(
    start_app: StartApp, limit: str
) -> None:
    visitors = await start_app(**{limit: "2 per minute"})
    ada, bob = await visitors.member("ada"), await visitors.member("bob")
    assert [await handshake(ada), await handshake(ada)] == [101, 101]
    async with ada.client.websocket(
        "/ws", headers={"Origin": ORIGIN}, scope_base=ada.scope
    ) as socket:
        with pytest.raises(WebsocketResponseError) as refused:
            await socket.receive_json()
    assert refused.value.response.status_code == 429
    assert 0 < int(refused.value.response.headers["Retry-After"]) <= 60
    # The limit by user spares others at the address; the limit by address spares other addresses.
    if limit == "limit_handshake_user":
        assert await handshake(bob) == 101
    else:
        assert await handshake(bob) == 429
        ada.address = "192.0.2.1"
        assert await handshake(ada) == 101


async def handshake(visitor: Visitor, origin: str = ORIGIN) -> int:
    headers: dict[str, Any] = {"Origin": origin}
    async with visitor.client.websocket("/ws", headers=headers, scope_base=visitor.scope) as socket:
        try:
            await socket.receive_json()
        except WebsocketResponseError as refused:
            return refused.response.status_code
    return 101
