"""Adding passkeys and signing in with them (ASVS 6.3.3, 6.3.4, 6.5.2)."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import limits
import pytest
from quart import Quart

from quartapp import create_app
from quartapp.activities import FACTOR_ADDED, FACTOR_REMOVED, PASSKEY_REFUSED
from quartapp.models import Passkey, Role, Session, User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM
from quartapp.models.notifications.notice import Notice
from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from quartapp.security import challenges
from quartapp.settings import Settings
from tests.integration.routes.authenticator import before_second_step, codes_on
from tests.integration.routes.conftest import (
    Answer,
    StartApp,
    Visitor,
    Visitors,
    documents,
    user_named,
)
from tests.integration.routes.requests import add_passkey as add
from tests.integration.routes.requests import options
from tests.security_key import BACKED_UP, PRESENT, VERIFIED, Authenticator

HOME = "/account/factors/passkeys"
REFUSED = "This passkey was not accepted. Try again, or sign in another way."


async def show(visitor: Visitor, device: Authenticator, query: str = "", **fields: str) -> Answer:
    credential = device.authenticate(await options(visitor, "/login/passkey/options"))
    return await visitor.post(f"/login/passkey{query}", **{"credential": credential, **fields})


@pytest.fixture
async def device(ada: Visitor) -> Authenticator:
    """An authenticator with a passkey of Ada, who has signed out since."""
    device = Authenticator()
    assert (await add(ada, device)).status == 303
    await ada.post("/logout")
    return device


# ---- managing passkeys


async def test_the_options_for_a_new_passkey_are_complete(ada: Visitor) -> None:
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


async def test_passkeys_are_added_renamed_and_removed(visitors: Visitors, ada: Visitor) -> None:
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

    first, second = await Passkey.of_user((await user_named("ada")).id)
    assert (first.credential_id, first.public_key) == (phone.id, phone.public_key)
    assert (first.backed_up, second.backed_up) == (False, True)
    assert first.transports == ["hybrid", "internal"]
    assert (await ada.post(f"{HOME}/{first.id}/rename", name="Old phone")).location == HOME
    assert (await ada.post(f"{HOME}/{second.id}/remove")).location == HOME
    assert "does not sign out your other devices" in (await ada.get(HOME)).text
    page = await ada.get(HOME)
    assert "<h2>Old phone</h2>" in page.text
    assert "<h2>Key" not in page.text

    events = await Event.find({"verb": {"$regex": "^f"}}, sort="_id").to_list()
    recorded = [(event.verb, event.details) for event in events]
    assert recorded == [
        (FACTOR_ADDED.audit, {"factor": "passkey", "name": "Phone"}),
        (FACTOR_ADDED.audit, {"factor": "passkey", "name": "Key “A” <b>"}),
        (FACTOR_REMOVED.audit, {"factor": "passkey", "name": "Key “A” <b>"}),
    ]
    told = [notice.text for notice in await Notice.find({"kind": {"$regex": "^f"}}).to_list()]
    assert told[0] == "A second factor was added to your account: passkey “Phone”."
    assert told[2] == "A second factor was removed from your account: passkey “Key “A” <b>”."
    added = await visitors.emails(ada.email, "A second factor was added", count=2)
    assert any(": passkey “Phone”." in message for message in added)
    assert await visitors.emails(ada.email, "A second factor was removed")


async def test_an_invalid_passkey_name_shows_an_error(ada: Visitor) -> None:
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


async def test_renaming_past_the_limit_keeps_the_typed_name(start_app: StartApp) -> None:
    ada = await (await start_app(limit_factor_change="1 per hour")).member("ada")
    assert (await add(ada, Authenticator())).status == 303
    (passkey,) = await documents("passkeys")
    refused = await ada.post(f"{HOME}/{passkey['_id']}/rename", name="Old phone")
    assert refused.status == 429
    assert "Retry-After" in refused.headers
    assert "Too many attempts." in refused.text
    assert 'value="Old phone"' in refused.text
    assert await documents("passkeys") == [passkey]


async def test_a_passkey_of_another_user_is_404(visitors: Visitors, ada: Visitor) -> None:
    assert (await add(ada, Authenticator())).status == 303
    (passkey,) = await documents("passkeys")
    bob = await visitors.member("bob")
    for verb in ("rename", "remove"):
        assert (await bob.post(f"{HOME}/{passkey['_id']}/{verb}", name="Mine")).status == 404
    assert await documents("passkeys") == [passkey]


async def test_one_authenticator_can_be_added_only_once(visitors: Visitors, ada: Visitor) -> None:
    device = Authenticator()
    assert (await add(ada, device)).status == 303
    bob = await visitors.member("bob")
    for visitor in (ada, bob):
        answer = await add(visitor, device)
        assert answer.status == 422
        assert "This passkey has already been added." in answer.text
    assert await Passkey.count() == 1


async def test_the_number_of_passkeys_is_limited(start_app: StartApp) -> None:
    ada = await (await start_app(passkeys_per_user=2)).member("ada")
    assert (await add(ada, Authenticator())).status == 303
    assert (await add(ada, Authenticator())).status == 303
    answer = await add(ada, Authenticator())
    assert answer.status == 422
    assert "at most 2 passkeys" in answer.text
    assert await Passkey.count() == 2


async def test_a_passkey_is_added_after_reauthentication(ada: Visitor) -> None:
    await ada.expire_authentication()
    asked = await add(ada, Authenticator(), name="Laptop")
    assert "Confirm that it is you" in asked.text
    assert await Passkey.count() == 0
    answer = await ada.send(HOME, {**asked.fields, "password": ada.password})
    assert answer.status == 303
    assert [each.name for each in await Passkey.find_all().to_list()] == ["Laptop"]


INVALID: dict[str, dict[str, Any]] = {
    "another origin": {"origin": "http://evil.example"},
    "another port": {"origin": "http://localhost:81"},
    "http instead of https": {"origin": "https://localhost"},
    "another relying party": {"rp_id": "evil.example"},
    "user not present": {"flags": VERIFIED},
    "user not verified": {"flags": PRESENT},
    "cross-origin frame": {"client_data": {"crossOrigin": True}},
    "another type": {"client_data": {"type": "webauthn.other"}},
    "made-up challenge": {"client_data": {"challenge": "A" * 75}},
    "no challenge": {"client_data": {"challenge": ""}},
    "malformed challenge": {"client_data": {"challenge": {"$ne": ""}}},
}


async def test_an_invalid_response_creates_no_passkey(ada: Visitor) -> None:
    for fault, altered in INVALID.items():
        answer = await add(ada, Authenticator(**altered))
        assert answer.status == 422, fault
        assert "was not valid. Try again." in answer.text
    assert await Passkey.count() == 0
    assert await documents("answered") == []


async def test_a_malformed_response_is_refused(ada: Visitor) -> None:
    anonymous = ada.another_device()
    nothing = ["", "x", "[]", "{}", "null", "1e999", '{"id": {"$ne": 1}}', "[" * 20_000]
    for answer in [*nothing, '{"id": "\\ud800", "response": {}}']:
        assert (await ada.post(HOME, name="x", credential=answer)).status == 422, answer[:40]
        refused = await anonymous.post("/login/passkey", credential=answer)
        assert (refused.status, REFUSED in refused.text) == (422, True), answer[:40]


async def test_a_challenge_creates_one_passkey(ada: Visitor) -> None:
    asked = await options(ada, f"{HOME}/options")
    first, second = Authenticator(), Authenticator()
    assert (await ada.post(HOME, name="x", credential=first.register(asked))).status == 303
    assert (await ada.post(HOME, name="x", credential=second.register(asked))).status == 422
    assert await Passkey.count() == 1


async def test_a_challenge_is_bound_to_its_session(ada: Visitor) -> None:
    other = ada.another_device()
    await other.sign_in()
    theirs = await options(other, f"{HOME}/options")
    assert (
        await ada.post(HOME, name="x", credential=Authenticator().register(theirs))
    ).status == 422
    for path in (f"{HOME}/options",):
        challenge = (await options(ada, path))["challenge"]
    # A challenge for signing in is not accepted for a new passkey either.
    device = Authenticator(client_data={"challenge": challenge[:-4] + "AAAA"})
    assert (await add(ada, device)).status == 422
    assert await Passkey.count() == 0


# ---- signing in


async def test_a_passkey_alone_signs_in_and_redirects(ada: Visitor, device: Authenticator) -> None:
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
    # The session counts as freshly authenticated.
    assert (await ada.post(f"{HOME}/{passkey.id}/remove")).status == 303


async def test_a_passkey_sign_in_is_not_remembered_and_stays_on_the_site(
    ada: Visitor, device: Authenticator
) -> None:
    answer = await show(ada, device, "?next=//evil.example", remember="")
    assert (answer.status, answer.location) == (303, "/")
    (session,) = await Session.find({"ended_at": None}).to_list()
    assert not session.remembered


async def test_a_signed_in_user_is_redirected_from_the_passkey_sign_in(ada: Visitor) -> None:
    device = Authenticator()
    await add(ada, device)
    answer = await show(ada, device, "?next=/posts")
    assert (answer.status, answer.location) == (303, "/posts")
    assert await Session.count() == 1


async def test_an_invalid_response_signs_no_user_in(ada: Visitor, device: Authenticator) -> None:
    for fault, altered in INVALID.items():
        answer = await show(ada, replace(device, **altered), "?next=/posts", remember="y")
        assert answer.status == 422, fault
        assert REFUSED in answer.text
        # The form is shown again with its choices and the next page.
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


async def of_deleted_user(device: Authenticator) -> None:
    device.user_handle = b""


async def removed(_: Authenticator) -> None:
    (passkey,) = await Passkey.find_all().to_list()
    await passkey.remove(await user_named("ada"), by=SYSTEM)


@pytest.mark.parametrize("alter", [unknown, forged, of_another, of_deleted_user, removed])
async def test_all_refused_passkeys_get_the_same_answer(
    ada: Visitor, device: Authenticator, alter: Callable[[Authenticator], Awaitable[None]]
) -> None:
    await alter(device)
    ended = (await ada.get("/login")).anonymized
    answer = await show(ada, device)
    assert answer.status == 422
    assert REFUSED in answer.text
    assert await ada.me() is None
    assert await Event.find({"verb": PASSKEY_REFUSED.audit}).count() == 0
    assert len(answer.text) - len(ended) < 400


async def test_a_challenge_signs_in_once(ada: Visitor, device: Authenticator) -> None:
    asked = await options(ada, "/login/passkey/options")
    copy = ada.copy()
    credential = device.authenticate(asked)
    assert (await ada.post("/login/passkey", credential=credential)).status == 303
    # Replaying the response with a copy of the cookie is refused.
    assert (await copy.post("/login/passkey", credential=credential)).status == 422
    assert (await copy.post("/login/passkey", credential=device.authenticate(asked))).status == 422
    assert await Event.find({"verb": PASSKEY_REFUSED.audit}).count() == 0


async def test_concurrent_responses_to_one_challenge_sign_in_once(
    ada: Visitor, device: Authenticator
) -> None:
    asked = await options(ada, "/login/passkey/options")
    twins = [ada.copy() for _ in range(6)]
    answers = await asyncio.gather(
        *(copy.post("/login/passkey", credential=device.authenticate(asked)) for copy in twins)
    )
    assert sorted(answer.status for answer in answers) == [303] + [422] * 5


async def test_a_challenge_is_bound_to_its_browser(ada: Visitor, device: Authenticator) -> None:
    asked = await options(ada.another_device(), "/login/passkey/options")
    assert (await ada.post("/login/passkey", credential=device.authenticate(asked))).status == 422


async def test_a_challenge_expires_after_five_minutes(
    ada: Visitor, device: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = await options(ada, "/login/passkey/options")
    with monkeypatch.context() as later:
        now = challenges._milliseconds
        later.setattr("quartapp.security.challenges._milliseconds", lambda: now() + 301_000)
        late = await ada.post("/login/passkey", credential=device.authenticate(asked))
    assert late.status == 422
    assert (await ada.post("/login/passkey", credential=device.authenticate(asked))).status == 303


async def test_a_counter_that_decreases_is_refused_and_notified(
    visitors: Visitors, ada: Visitor, device: Authenticator
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
    assert await Event.find({"verb": PASSKEY_REFUSED.audit}).count() == 3
    notices = await Notice.find({"kind": "passkey.refused"}).to_list()
    assert notices[0].text == (
        "A sign-in with your passkey “Phone” was refused: there may be a copy of it."
    )
    messages = await visitors.emails(ada.email, "Your passkey may have been copied", count=3)
    assert "sign in to the account ada with the passkey “Phone”" in messages[0]
    # The authenticator with the higher counter is still accepted.
    device.count, device.counts = 42, True
    assert (await show(ada, device)).status == 303


async def test_an_unsigned_response_does_not_report_a_cloned_passkey(
    ada: Visitor, device: Authenticator
) -> None:
    assert (await show(ada, device)).status == 303
    await ada.post("/logout")
    device.count, device.counts, device.key = 0, False, Authenticator().key
    assert (await show(ada, device)).status == 422
    assert await Event.find({"verb": PASSKEY_REFUSED.audit}).count() == 0


async def test_a_counter_that_stays_zero_is_accepted(ada: Visitor, device: Authenticator) -> None:
    device.counts = False
    for _ in range(2):
        assert (await show(ada, device)).status == 303
        await ada.post("/logout")


async def test_refused_passkeys_are_limited_per_address(settings: Settings) -> None:
    limit = limits.parse("2 per 5 minutes")
    app = create_app(settings.model_copy(update={"limit_sign_in_address": limit}))
    async with app.test_app():
        visitors = Visitors(app)
        ada = await visitors.member()
        device = Authenticator()
        assert (await add(ada, device)).status == 303
        await ada.post("/logout")
        stranger = Authenticator()
        answers = [await show(visitors.anonymous(), stranger) for _ in range(3)]
        assert [each.status for each in answers] == [422, 422, 429]
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 300
        assert "Try again in" in answers[-1].text
        # Passwords and other addresses have limits of their own.
        assert (await ada.sign_in()).status == 303
        await ada.post("/logout")
        ada.address = "192.0.2.1"
        assert (await show(ada, device)).status == 303


# ---- as a second factor


async def test_the_first_passkey_creates_codes_and_ends_password_sessions(
    visitors: Visitors, ada: Visitor
) -> None:
    other = ada.another_device()
    await other.sign_in()
    answer = await add(ada, Authenticator())
    assert answer.location == "/account/factors/recovery-codes"
    codes = codes_on(await ada.get(answer.location))
    assert len(codes) == 10
    assert await other.me() is None
    assert (await ada.get("/account/sessions")).status == 200
    # A second passkey creates no codes and ends no session.
    assert (await add(ada, Authenticator())).location == HOME
    page = await ada.get("/account/factors")
    assert "You have 2 passkeys" in page.text
    assert "10 recovery codes left" in page.text
    assert "passkey" in (await ada.get("/account")).text
    root = await visitors.admin()
    assert "<dd>passkey</dd>" in (await root.get("/admin/users/ada")).text


async def test_a_passkey_is_accepted_as_the_second_step(
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


async def test_the_second_step_offers_no_passkey_to_users_without_one(visitors: Visitors) -> None:
    bob = await before_second_step(visitors, "bob")
    assert "/login/passkey" not in (await bob.get("/login/factor")).text
    assert (await visitors.anonymous().get("/login/factor/options")).status == 404


async def test_a_passkey_fulfils_the_factor_requirement_of_a_role(
    visitors: Visitors,
) -> None:
    await Role.add("careful", "", [Permission.EVENTS_READ], by=SYSTEM, requires_factor=True)
    role = await Role.named("careful")
    assert role is not None
    ada = await visitors.signed_in("ada", role)
    assert (await ada.get("/admin/events")).status == 302
    device = Authenticator()
    assert (await add(ada, device)).status == 303
    assert (await ada.get("/admin/events")).status == 200
    await ada.post("/logout")
    assert (await show(ada, device)).status == 303
    assert (await ada.get("/admin/events")).status == 200
    # Removing the last passkey withholds the role again.
    (passkey,) = await Passkey.find_all().to_list()
    assert (await ada.post(f"{HOME}/{passkey.id}/remove")).status == 303
    assert (await ada.get("/admin/events")).status == 302
    assert (await user_named("ada")).recovery_codes == []


async def test_a_factor_reset_removes_the_passkeys(
    visitors: Visitors, ada: Visitor, device: Authenticator
) -> None:
    root = await visitors.admin()
    assert (await root.post("/admin/users/ada/factors/reset")).status == 303
    assert await documents("passkeys") == []
    assert (await user_named("ada")).passkeys == []
    assert (await show(ada, device)).status == 422
    assert (await ada.sign_in()).location == "/"


async def test_a_passkey_removed_by_a_raw_write_signs_no_user_in(
    ada: Visitor, device: Authenticator
) -> None:
    users = User.get_motor_collection()
    await users.update_one({"username": "ada"}, {"$set": {"passkeys": []}})
    assert (await show(ada, device)).status == 422
    assert await ada.me() is None


# ---- relying party and origins


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


async def test_passkeys_use_the_relying_party_of_the_settings(
    app: Quart, anonymous: Visitor
) -> None:
    running = runtime_of(app)
    usual = running.settings
    for update, host, rp_id in WHERE:
        running.settings = usual.model_copy(update=update)
        answer = await anonymous.get("/login/passkey/options", headers={"Host": host})
        assert answer.status == (200 if rp_id else 404), (update, host)
        if rp_id:
            assert json.loads(answer.text)["rpId"] == rp_id
        page = await anonymous.get("/login", headers={"Host": host})
        assert ("passkeys.js" in page.text) is bool(rp_id)


async def test_a_page_at_an_ip_address_says_where_passkeys_work(ada: Visitor) -> None:
    for visitor, path in ((ada, HOME), (ada.another_device(), "/login")):
        page = await visitor.get(f"{path}?next=/posts", headers={"Host": "127.0.0.1:5000"})
        assert f"http://localhost:5000{path}?next=/posts" in page.links
        assert "Passkeys need a domain name" in page.text
    app = runtime_of(ada.app)
    app.settings = app.settings.model_copy(update={"quartapp_env": "production"})
    page = await ada.another_device().get("/login", headers={"Host": "127.0.0.1:5000"})
    assert "localhost" not in page.text


async def test_listed_origins_are_accepted_if_they_match_the_relying_party(
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
