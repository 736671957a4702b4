"""Passkeys: adding one's own, and signing in with one (ASVS 6.3.3, 6.3.4, 6.5.2)."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import limits
import pytest
from quart import Quart

from quartapp import create_app
from quartapp.models import Passkey, Role, Session, User
from quartapp.models.audit.event import Event, Verb
from quartapp.models.base.actor import NOBODY
from quartapp.models.notifications.notice import Notice
from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from quartapp.security import webauthn
from quartapp.settings import Settings
from tests.routes.authenticator import codes_on, half_way
from tests.routes.conftest import Answer, Open, Town, Visitor, documents, the_user
from tests.routes.scenes import add_passkey as add
from tests.routes.scenes import options
from tests.security_key import BACKED_UP, PRESENT, VERIFIED, Authenticator

HOME = "/account/factors/passkeys"
REFUSED = "This passkey was not accepted. Try again, or sign in another way."


async def show(visitor: Visitor, device: Authenticator, query: str = "", **fields: str) -> Answer:
    credential = device.authenticate(await options(visitor, "/login/passkey/options"))
    return await visitor.post(f"/login/passkey{query}", **{"credential": credential, **fields})


@pytest.fixture
async def device(ada: Visitor) -> Authenticator:
    """Ada's, added; she has signed out since."""
    device = Authenticator()
    assert (await add(ada, device)).status == 303
    await ada.post("/logout")
    return device


# ---- one's own


async def test_a_passkey_is_asked_for_as_it_has_to_be(ada: Visitor) -> None:
    first = Authenticator()
    assert (await add(ada, first)).status == 303
    asked = await options(ada, f"{HOME}/options")
    assert asked["rp"] == {"id": "localhost", "name": "quartapp"}
    assert asked["user"]["name"] == "ada"
    assert asked["attestation"] == "none"
    assert asked["authenticatorSelection"] == {
        "residentKey": "required",
        "requireResidentKey": True,
        "userVerification": "required",
    }
    assert asked["excludeCredentials"] == [
        {"id": first.id, "type": "public-key", "transports": ["hybrid", "internal"]}
    ]
    again = await options(ada, f"{HOME}/options")
    assert again["challenge"] != asked["challenge"]


async def test_several_are_added_named_and_removed(town: Town, ada: Visitor) -> None:
    page = await ada.get(HOME)
    assert "You have no passkeys yet." in page.text
    assert page.fields["name"] == "Unknown device"
    phone, key = Authenticator(), Authenticator(flags=PRESENT | VERIFIED | BACKED_UP)
    assert (await add(ada, phone)).location == "/account/factors/recovery-codes"
    assert (await add(ada, key, name=" Key “A” <b> ")).location == HOME
    page = await ada.get(HOME)
    assert "The passkey “Key “A” &lt;b&gt;” was added." in page.text
    assert page.text.index("Phone") < page.text.index("<h2>Key")
    assert page.text.count("<dd>never</dd>") == 2

    first, second = await Passkey.of_user((await the_user("ada")).id)
    assert (first.credential_id, first.public_key) == (phone.id, phone.public_key)
    assert (first.backed_up, second.backed_up) == (False, True)
    assert first.transports == ["hybrid", "internal"]
    assert (await ada.post(f"{HOME}/{first.id}/rename", name="Old phone")).location == HOME
    assert (await ada.post(f"{HOME}/{second.id}/remove")).location == HOME
    assert "does not sign out your other devices" in (await ada.get(HOME)).text
    page = await ada.get(HOME)
    assert "<h2>Old phone</h2>" in page.text
    assert "<h2>Key" not in page.text

    recorded = [(e.verb, e.details) for e in await Event.find({"verb": {"$regex": "^f"}}).to_list()]
    assert recorded == [
        (Verb.FACTOR_ADDED, {"factor": "passkey", "name": "Phone"}),
        (Verb.FACTOR_ADDED, {"factor": "passkey", "name": "Key “A” <b>"}),
        (Verb.FACTOR_REMOVED, {"factor": "passkey", "name": "Key “A” <b>"}),
    ]
    told = [notice.text for notice in await Notice.find({"kind": {"$regex": "^f"}}).to_list()]
    assert told[0] == "Your account has a new second factor: passkey “Phone”."
    assert told[2] == "A second factor was removed from your account: passkey “Key “A” <b>”."
    added = await town.letters(ada.email, "A second factor was added", count=2)
    assert any("passkey “Phone”. It was set up" in letter for letter in added)
    assert await town.letters(ada.email, "A second factor was removed")


async def test_a_name_that_cannot_be_used_comes_back_with_the_reason(ada: Visitor) -> None:
    long = await add(ada, Authenticator(), name="x" * 61)
    assert long.status == 422
    assert long.error("name") == "A name has at most 60 characters."
    assert long.fields["credential"] == ""
    assert (await add(ada, Authenticator())).status == 303
    (passkey,) = await documents("passkeys")
    refused = await ada.post(f"{HOME}/{passkey['_id']}/rename", name="  ")
    assert refused.status == 422
    assert "Enter a name." in refused.text
    assert f'id="name-{passkey["_id"]}"' in refused.text
    assert await documents("passkeys") == [passkey]


async def test_somebody_elses_passkey_is_none_of_ones_business(town: Town, ada: Visitor) -> None:
    assert (await add(ada, Authenticator())).status == 303
    (passkey,) = await documents("passkeys")
    bob = await town.member("bob")
    for verb in ("rename", "remove"):
        assert (await bob.post(f"{HOME}/{passkey['_id']}/{verb}", name="Mine")).status == 404
    assert await documents("passkeys") == [passkey]


async def test_one_device_is_added_once_by_whomever(town: Town, ada: Visitor) -> None:
    device = Authenticator()
    assert (await add(ada, device)).status == 303
    bob = await town.member("bob")
    for visitor in (ada, bob):
        answer = await add(visitor, device)
        assert answer.status == 422
        assert "This passkey has already been added." in answer.text
    assert await Passkey.count() == 1


async def test_an_account_has_so_many_and_no_more(open_town: Open) -> None:
    ada = await (await open_town(passkeys_per_user=2)).member("ada")
    assert (await add(ada, Authenticator())).status == 303
    assert (await add(ada, Authenticator())).status == 303
    answer = await add(ada, Authenticator())
    assert answer.status == 422
    assert "at most 2 passkeys" in answer.text
    assert await Passkey.count() == 2


async def test_a_stale_session_confirms_and_the_passkey_is_added(ada: Visitor) -> None:
    await ada.grow_stale()
    asked = await add(ada, Authenticator(), name="Laptop")
    assert "Confirm that it is you" in asked.text
    assert await Passkey.count() == 0
    answer = await ada.send(HOME, {**asked.fields, "password": ada.password})
    assert answer.status == 303
    assert [each.name for each in await Passkey.find_all().to_list()] == ["Laptop"]


SPOILED: dict[str, dict[str, Any]] = {
    "another origin": {"origin": "http://evil.example"},
    "another port": {"origin": "http://localhost:81"},
    "tls that is none": {"origin": "https://localhost"},
    "another name": {"rp_id": "evil.example"},
    "nobody was there": {"flags": VERIFIED},
    "nobody was asked who": {"flags": PRESENT},
    "inside another page": {"client_data": {"crossOrigin": True}},
    "of another kind": {"client_data": {"type": "webauthn.other"}},
    "a challenge of one's own": {"client_data": {"challenge": "A" * 75}},
    "no challenge": {"client_data": {"challenge": ""}},
    "a challenge that is none": {"client_data": {"challenge": {"$ne": ""}}},
}


async def test_no_passkey_is_made_from_an_answer_that_is_not_quite_right(ada: Visitor) -> None:
    for fault, spoiled in SPOILED.items():
        answer = await add(ada, Authenticator(**spoiled))
        assert answer.status == 422, fault
        assert "was not valid. Try again." in answer.text
    assert await Passkey.count() == 0
    assert await documents("answered") == []


async def test_what_is_no_answer_breaks_nothing(ada: Visitor) -> None:
    nobody = ada.another_device()
    nothing = ["", "x", "[]", "{}", "null", "1e999", '{"id": {"$ne": 1}}', "[" * 20_000]
    for answer in [*nothing, '{"id": "\\ud800", "response": {}}']:
        assert (await ada.post(HOME, name="x", credential=answer)).status == 422, answer[:40]
        refused = await nobody.post("/login/passkey", credential=answer)
        assert (refused.status, REFUSED in refused.text) == (422, True), answer[:40]


async def test_a_challenge_makes_one_passkey(ada: Visitor) -> None:
    asked = await options(ada, f"{HOME}/options")
    first, second = Authenticator(), Authenticator()
    assert (await ada.post(HOME, name="x", credential=first.register(asked))).status == 303
    assert (await ada.post(HOME, name="x", credential=second.register(asked))).status == 422
    assert await Passkey.count() == 1


async def test_a_challenge_is_for_the_session_that_asked(ada: Visitor) -> None:
    other = ada.another_device()
    await other.sign_in()
    theirs = await options(other, f"{HOME}/options")
    assert (
        await ada.post(HOME, name="x", credential=Authenticator().register(theirs))
    ).status == 422
    for path in (f"{HOME}/options",):
        challenge = (await options(ada, path))["challenge"]
    # Neither is one for signing in good for a new passkey.
    device = Authenticator(client_data={"challenge": challenge[:-4] + "AAAA"})
    assert (await add(ada, device)).status == 422
    assert await Passkey.count() == 0


# ---- signing in


async def test_a_passkey_alone_signs_in_and_leads_on(ada: Visitor, device: Authenticator) -> None:
    page = await ada.get("/login?next=/account/sessions")
    assert 'action="/login/passkey?next=/account/sessions"' in page.text
    answer = await show(ada, device, "?next=/account/sessions", remember="y")
    assert (answer.status, answer.location) == (303, "/account/sessions")
    me = await ada.me()
    assert me is not None
    (session,) = await Session.find({"ended_at": None}).to_list()
    assert (session.factor, session.remembered) == ("passkey", True)
    (passkey,) = await Passkey.find_all().to_list()
    assert passkey.sign_count == device.count == 1
    assert passkey.last_used_at is not None
    # It is as good as a password that was typed just now.
    assert (await ada.post(f"{HOME}/{passkey.id}/remove")).status == 303


async def test_it_leads_to_no_other_site_and_is_not_remembered_unasked(
    ada: Visitor, device: Authenticator
) -> None:
    answer = await show(ada, device, "?next=//evil.example", remember="")
    assert (answer.status, answer.location) == (303, "/")
    (session,) = await Session.find({"ended_at": None}).to_list()
    assert not session.remembered


async def test_who_is_in_already_is_led_on(ada: Visitor) -> None:
    device = Authenticator()
    await add(ada, device)
    answer = await show(ada, device, "?next=/posts")
    assert (answer.status, answer.location) == (303, "/posts")
    assert await Session.count() == 1


async def test_nobody_is_let_in_by_an_answer_that_is_not_quite_right(
    ada: Visitor, device: Authenticator
) -> None:
    for fault, spoiled in SPOILED.items():
        answer = await show(ada, replace(device, **spoiled), "?next=/posts", remember="y")
        assert answer.status == 422, fault
        assert REFUSED in answer.text
        # The form is back, with what was ticked and where it was to lead.
        assert 'action="/login?next=/posts"' in answer.text
        assert "checked" in answer.text
        assert await ada.me() is None
    (passkey,) = await Passkey.find_all().to_list()
    assert (passkey.sign_count, passkey.last_used_at) == (0, None)


async def unknown(device: Authenticator) -> None:
    device.credential_id = b"nobody's" * 4


async def forged(device: Authenticator) -> None:
    device.key = Authenticator().key


async def of_another(device: Authenticator) -> None:
    device.user_handle = b"somebody else"


async def of_nobody(device: Authenticator) -> None:
    device.user_handle = b""


async def removed(_: Authenticator) -> None:
    (passkey,) = await Passkey.find_all().to_list()
    await passkey.remove(await the_user("ada"), by=NOBODY)


@pytest.mark.parametrize("spoil", [unknown, forged, of_another, of_nobody, removed])
async def test_one_answer_for_all_who_are_not_let_in(
    ada: Visitor, device: Authenticator, spoil: Callable[[Authenticator], Awaitable[None]]
) -> None:
    await spoil(device)
    ended = (await ada.get("/login")).anonymized
    answer = await show(ada, device)
    assert answer.status == 422
    assert REFUSED in answer.text
    assert await ada.me() is None
    assert await Event.find({"verb": Verb.PASSKEY_REFUSED}).count() == 0
    assert len(answer.text) - len(ended) < 400


async def test_a_challenge_signs_in_once(ada: Visitor, device: Authenticator) -> None:
    asked = await options(ada, "/login/passkey/options")
    twin = ada.twin()
    credential = device.authenticate(asked)
    assert (await ada.post("/login/passkey", credential=credential)).status == 303
    # A thief with the visit's cookie and what was sent gets nothing.
    assert (await twin.post("/login/passkey", credential=credential)).status == 422
    assert (await twin.post("/login/passkey", credential=device.authenticate(asked))).status == 422
    assert await Event.find({"verb": Verb.PASSKEY_REFUSED}).count() == 0


async def test_of_many_answers_to_one_challenge_at_once_one_signs_in(
    ada: Visitor, device: Authenticator
) -> None:
    asked = await options(ada, "/login/passkey/options")
    twins = [ada.twin() for _ in range(6)]
    answers = await asyncio.gather(
        *(twin.post("/login/passkey", credential=device.authenticate(asked)) for twin in twins)
    )
    assert sorted(answer.status for answer in answers) == [303] + [422] * 5


async def test_a_challenge_is_for_the_visit_that_asked(ada: Visitor, device: Authenticator) -> None:
    asked = await options(ada.another_device(), "/login/passkey/options")
    assert (await ada.post("/login/passkey", credential=device.authenticate(asked))).status == 422


async def test_a_challenge_lasts_five_minutes(
    ada: Visitor, device: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = await options(ada, "/login/passkey/options")
    with monkeypatch.context() as later:
        now = webauthn._milliseconds
        later.setattr("quartapp.security.webauthn._milliseconds", lambda: now() + 301_000)
        late = await ada.post("/login/passkey", credential=device.authenticate(asked))
    assert late.status == 422
    assert (await ada.post("/login/passkey", credential=device.authenticate(asked))).status == 303


async def test_a_counter_that_goes_back_is_refused_and_its_owner_is_told(
    town: Town, ada: Visitor, device: Authenticator
) -> None:
    device.count = 41
    assert (await show(ada, device)).status == 303
    await ada.post("/logout")
    for count in (41, 40, -1):
        device.count = count if count >= 0 else 0
        device.counts = count >= 0 and count != 41
        answer = await show(ada, device)
        assert (answer.status, REFUSED in answer.text) == (422, True), count
    assert await ada.me() is None
    assert await Event.find({"verb": Verb.PASSKEY_REFUSED}).count() == 3
    notices = await Notice.find({"kind": "passkey.refused"}).to_list()
    assert notices[0].text == (
        "A sign-in with your passkey “Phone” was refused: there may be a copy of it."
    )
    letters = await town.letters(ada.email, "A passkey of yours may have been copied", count=3)
    assert "showed the passkey “Phone” of the account ada" in letters[0]
    # The one that goes on is let in still.
    device.count, device.counts = 42, True
    assert (await show(ada, device)).status == 303


async def test_a_stranger_cannot_make_a_passkey_seem_copied(
    ada: Visitor, device: Authenticator
) -> None:
    assert (await show(ada, device)).status == 303
    await ada.post("/logout")
    device.count, device.counts, device.key = 0, False, Authenticator().key
    assert (await show(ada, device)).status == 422
    assert await Event.find({"verb": Verb.PASSKEY_REFUSED}).count() == 0


async def test_a_counter_that_stays_at_nothing_is_fine(ada: Visitor, device: Authenticator) -> None:
    device.counts = False
    for _ in range(2):
        assert (await show(ada, device)).status == 303
        await ada.post("/logout")


async def test_failures_are_counted_for_the_address(settings: Settings) -> None:
    limit = limits.parse("2 per 5 minutes")
    app = create_app(settings.model_copy(update={"limit_sign_in_address": limit}))
    async with app.test_app():
        town = Town(app)
        ada = await town.member()
        device = Authenticator()
        assert (await add(ada, device)).status == 303
        await ada.post("/logout")
        stranger = Authenticator()
        answers = [await show(town.nobody(), stranger) for _ in range(3)]
        assert [each.status for each in answers] == [422, 422, 429]
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 300
        assert "Try again in" in answers[-1].text
        # Passwords have an allowance of their own, and so has every other address.
        assert (await ada.sign_in()).status == 303
        await ada.post("/logout")
        ada.address = "192.0.2.1"
        assert (await show(ada, device)).status == 303


# ---- as a factor among others


async def test_the_first_one_brings_recovery_codes_and_ends_what_a_password_opened(
    town: Town, ada: Visitor
) -> None:
    other = ada.another_device()
    await other.sign_in()
    answer = await add(ada, Authenticator())
    assert answer.location == "/account/factors/recovery-codes"
    codes = codes_on(await ada.get(answer.location))
    assert len(codes) == 10
    assert await other.me() is None
    assert (await ada.get("/account/sessions")).status == 200
    # Another one makes none, and ends nothing.
    assert (await add(ada, Authenticator())).location == HOME
    page = await ada.get("/account/factors")
    assert "You have 2 passkeys" in page.text
    assert "10 recovery codes left" in page.text
    assert "passkey" in (await ada.get("/account")).text
    root = await town.admin()
    assert "<dd>passkey</dd>" in (await root.get("/admin/users/ada")).text


async def test_after_the_password_a_passkey_is_the_second_step(
    ada: Visitor, device: Authenticator
) -> None:
    answer = await ada.post("/login?next=/posts", login="ada", password=ada.password, remember="y")
    assert (answer.status, answer.location) == (303, "/login/factor?next=%2Fposts")
    page = await ada.get(answer.location)
    assert 'action="/login/passkey?next=' in page.text
    assert "One of your recovery codes." in page.text
    asked = await options(ada, "/login/factor/options")
    assert [each["id"] for each in asked["allowCredentials"]] == [device.id]

    forger = replace(device, key=Authenticator().key)
    fields = {"credential": forger.authenticate(asked), "step": "y"}
    refused = await ada.post("/login/passkey?next=/posts", **fields)
    assert (refused.status, REFUSED in refused.text) == (422, True)
    assert "Two-factor authentication" in refused.text
    assert 'action="/login/factor?next=' in refused.text

    fields["credential"] = device.authenticate(await options(ada, "/login/factor/options"))
    answer = await ada.post("/login/passkey?next=/posts", **fields)
    assert (answer.status, answer.location) == (303, "/posts")
    (session,) = await Session.find({"ended_at": None}).to_list()
    assert (session.factor, session.remembered) == ("passkey", True)


async def test_who_has_an_app_alone_is_offered_no_passkey_at_the_second_step(town: Town) -> None:
    bob = await half_way(town, "bob")
    assert "/login/passkey" not in (await bob.get("/login/factor")).text
    assert (await town.nobody().get("/login/factor/options")).status == 404


async def test_a_role_that_asks_for_a_factor_gives_what_it_allows_to_a_passkey(
    town: Town,
) -> None:
    await Role.add("careful", "", [Permission.EVENTS_READ], by=NOBODY, requires_factor=True)
    role = await Role.named("careful")
    assert role is not None
    ada = await town.signed_in("ada", role)
    assert (await ada.get("/admin/events")).status == 302
    device = Authenticator()
    assert (await add(ada, device)).status == 303
    assert (await ada.get("/admin/events")).status == 200
    await ada.post("/logout")
    assert (await show(ada, device)).status == 303
    assert (await ada.get("/admin/events")).status == 200
    # The last one that is removed takes it away again.
    (passkey,) = await Passkey.find_all().to_list()
    assert (await ada.post(f"{HOME}/{passkey.id}/remove")).status == 303
    assert (await ada.get("/admin/events")).status == 302
    assert (await the_user("ada")).recovery_codes == []


async def test_an_administrator_who_resets_the_factors_removes_the_passkeys(
    town: Town, ada: Visitor, device: Authenticator
) -> None:
    root = await town.admin()
    assert (await root.post("/admin/users/ada/factors/reset")).status == 303
    assert await documents("passkeys") == []
    assert (await the_user("ada")).passkeys == []
    assert (await show(ada, device)).status == 422
    assert (await ada.sign_in()).location == "/"


async def test_a_passkey_that_was_taken_from_its_user_past_the_verbs_opens_nothing(
    ada: Visitor, device: Authenticator
) -> None:
    users = User.get_motor_collection()
    await users.update_one({"username": "ada"}, {"$set": {"passkeys": []}})
    assert (await show(ada, device)).status == 422
    assert await ada.me() is None


# ---- where


WHERE: list[tuple[dict[str, str], str, str | None]] = [
    ({}, "localhost:5000", "localhost"),
    ({}, "127.0.0.1:5000", None),
    ({"base_url": "https://people.example.org"}, "127.0.0.1", "people.example.org"),
    ({"base_url": "http://127.0.0.1:5000"}, "127.0.0.1:5000", None),
    ({"quartapp_env": "production"}, "localhost", None),
    (
        {"quartapp_env": "production", "base_url": "https://people.example.org"},
        "localhost",
        "people.example.org",
    ),
    ({"quartapp_env": "production", "base_url": "https://192.0.2.1"}, "localhost", None),
    ({"quartapp_env": "production", "base_url": "https://[::1]"}, "localhost", None),
]


async def test_passkeys_are_for_the_name_of_the_settings(app: Quart, nobody: Visitor) -> None:
    running = runtime_of(app)
    usual = running.settings
    for update, host, rp_id in WHERE:
        running.settings = usual.model_copy(update=update)
        answer = await nobody.get("/login/passkey/options", headers={"Host": host})
        assert answer.status == (200 if rp_id else 404), (update, host)
        if rp_id:
            assert json.loads(answer.text)["rpId"] == rp_id
        page = await nobody.get("/login", headers={"Host": host})
        assert ("passkeys.js" in page.text) is bool(rp_id)


async def test_in_development_a_page_at_an_address_says_where_they_work(ada: Visitor) -> None:
    for visitor, path in ((ada, HOME), (ada.another_device(), "/login")):
        page = await visitor.get(f"{path}?next=/posts", headers={"Host": "127.0.0.1:5000"})
        assert f"http://localhost:5000{path}?next=/posts" in page.links
        assert "Passkeys need a domain name" in page.text
    app = runtime_of(ada.app)
    app.settings = app.settings.model_copy(update={"quartapp_env": "production"})
    page = await ada.another_device().get("/login", headers={"Host": "127.0.0.1:5000"})
    assert "localhost" not in page.text


async def test_origins_that_are_listed_count_if_they_are_of_that_name(
    app: Quart, ada: Visitor
) -> None:
    running = runtime_of(app)
    ours = ["https://www.example.org", "https://example.org:8443"]
    foreign = ["https://evilexample.org", "https://other.test"]
    running.settings = running.settings.model_copy(
        update={
            "quartapp_env": "production",
            "base_url": "https://example.org",
            "allowed_origins": [*ours, *foreign],
        }
    )
    found = {}
    for origin in ["https://example.org", *ours, *foreign]:
        device = Authenticator(origin=origin)
        credential = device.register(await options(ada, f"{HOME}/options"))
        fields = {"csrf_token": await ada.csrf_token(), "name": "x", "credential": credential}
        answer = await ada.send(HOME, fields, {"Origin": ours[0]})
        found[origin] = answer.status
    assert found == dict.fromkeys(["https://example.org", *ours], 303) | dict.fromkeys(foreign, 422)
