"""Setting up a second factor, signing in with it and recovering it (ASVS 6.3.3, 6.5)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.activities import CODES_BLOCKED, FACTORS_RESET
from quartapp.models import Event, Session, User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.factors import wrong_codes
from quartapp.models.factors.factor import Factor
from quartapp.models.factors.wrong_codes import FactorsBlocked
from quartapp.models.sessions.reason import Reason
from quartapp.policy import ADMIN
from quartapp.runtime import runtime_of
from tests.integration.routes.authenticator import (
    app_code,
    before_second_step,
    codes_on,
    secret_on,
    set_up,
)
from tests.integration.routes.conftest import (
    ORIGIN,
    StartApp,
    Visitor,
    Visitors,
    documents,
    role_named,
    user_named,
)

TOTP, STEP, FACTORS = "/account/factors/totp", "/login/factor", "/account/factors"
CODES = "/account/factors/recovery-codes"

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Return a function that advances the clock of the application by seconds."""
    real, ahead = clock.now, [timedelta(0)]
    monkeypatch.setattr(clock, "now", lambda: real() + ahead[0])

    def wait(seconds: float) -> None:
        ahead[0] += timedelta(seconds=seconds)

    return wait


async def repeat_password_step(visitor: Visitor, **fields: str) -> None:
    """Sign out and enter the password again."""
    await visitor.post("/logout")
    answer = await visitor.sign_in(**fields)
    assert (answer.status, answer.location) == (303, STEP), answer.text


async def require(name: str) -> None:
    role = await role_named(name)
    await role.edit(
        name=name,
        description=role.description,
        permissions=role.known,
        requires_factor=True,
        by=SYSTEM,
    )


# ---- setting up


async def test_the_offered_secret_is_stable_and_bound_to_its_session(
    ada: Visitor, visitors: Visitors
) -> None:
    page = await ada.get(TOTP)
    secret = secret_on(page)
    assert re.fullmatch(r"[A-Z2-7]{32}", secret)
    assert '<svg viewBox="0 0' in page.text
    assert " style=" not in page.text
    assert secret not in str(
        [row for name in ("users", "sessions") for row in await documents(name)]
    )
    assert secret_on(await ada.get(TOTP)) == secret
    for wrong in ("000000", "", "12345", "abcdef", "१२३४५६", "$ne"):
        answer = await ada.post(TOTP, code=wrong, secret="JBSWY3DPEHPK3PXP")
        assert answer.status == 422
        assert answer.error("code")
        assert secret_on(answer) == secret
    # A cookie of another browser offers no secret.
    other = ada.another_device()
    await other.sign_in()
    assert secret_on(await other.get(TOTP)) != secret
    planted = next(c for c in other._jar if c.name == "quartapp_visit")
    ada._jar.set_cookie(planted)
    assert secret_on(await ada.get(TOTP)) not in (secret, secret_on(await other.get(TOTP)))


async def test_the_right_code_sets_up_the_app_and_shows_codes_once(ada: Visitor) -> None:
    assert "Set up an app" in (await ada.get(FACTORS)).text
    thief, me = ada.copy(), await ada.me()
    other = ada.another_device()
    await other.sign_in()
    await set_up(ada)
    assert len(ada.codes) == 10
    assert await thief.me() is None, "the session has a new token"
    assert {**(await ada.me() or {}), "version": 0} == {**(me or {}), "version": 0}
    again = await ada.get(CODES)
    assert codes_on(again) == []
    assert "You have 10 recovery codes left" in again.text
    assert ada.codes[0] not in (await ada.get(FACTORS)).text
    # Sessions without a factor have ended.
    told = await other.get("/account")
    assert told.status == 302
    assert "requires a second factor" in (await other.get(told.location)).text
    assert (await ada.get(TOTP)).location == FACTORS, "the app is set up already"


async def test_new_recovery_codes_are_shown_once_and_void_the_old_ones(
    ada: Visitor, visitors: Visitors
) -> None:
    assert (await ada.post(CODES)).location == FACTORS, "there is no factor to recover yet"
    await set_up(ada)
    old = ada.codes
    answer = await ada.post(CODES)
    new = codes_on(await ada.get(answer.location))
    assert len(new) == 10
    assert not set(new) & set(old)
    assert codes_on(await ada.get(answer.location)) == []
    await repeat_password_step(ada)
    assert (await ada.post(STEP, code=old[0])).status == 422
    assert (await ada.post(STEP, code=new[0])).status == 303


async def test_an_old_cookie_shows_no_recovery_codes_again(ada: Visitor) -> None:
    await set_up(ada)
    answer = await ada.post(CODES)
    before = ada.copy()
    assert len(codes_on(await ada.get(answer.location))) == 10
    assert codes_on(await before.get(answer.location)) == []


async def test_an_old_cookie_does_not_offer_a_used_secret_again(ada: Visitor, wait: Wait) -> None:
    secret = secret_on(await ada.get(TOTP))
    before = [cookie for cookie in ada._jar if cookie.name == "quartapp_visit"]
    await set_up(ada)
    wait(60)
    assert (await ada.post(f"{TOTP}/remove")).status == 303
    for cookie in before:
        ada._jar.set_cookie(cookie)
    assert secret_on(await ada.get(TOTP)) == secret
    answer = await ada.post(TOTP, code=app_code(secret))
    assert answer.status == 422
    assert "already used" in answer.error("code")
    assert secret_on(answer) != secret
    assert (await user_named("ada")).totp is None


async def test_a_completed_password_step_allows_one_sign_in(ada: Visitor) -> None:
    await set_up(ada)
    await repeat_password_step(ada)
    before = ada.copy()
    assert (await ada.post(STEP, code=ada.codes[0])).location == FACTORS
    answer = await before.post(STEP, code=ada.codes[1])
    assert (answer.status, answer.location) == (303, "/login")
    assert await before.me() is None


async def test_changes_of_factors_are_limited(start_app: StartApp) -> None:
    visitors = await start_app(limit_factor_change="4 per hour")
    ada = await visitors.member("ada")
    await set_up(ada)
    for _ in range(3):
        assert (await ada.post(CODES)).status == 303
    refused = await ada.post(CODES)
    assert refused.status == 429
    assert 3000 < int(refused.headers["Retry-After"]) <= 3600
    assert (await ada.post(f"{TOTP}/remove")).status == 429
    bob = await visitors.member("bob")
    await set_up(bob)


# ---- signing in


async def test_there_is_no_session_until_the_code_is_right(ada: Visitor, wait: Wait) -> None:
    app = await set_up(ada)
    await ada.post("/logout")
    answer = await ada.sign_in(remember="y")
    assert (answer.status, answer.location) == (303, STEP)
    assert await ada.me() is None
    assert (await ada.get("/account")).status == 302
    page = await ada.get(STEP)
    assert "Two-factor authentication" in page.text
    wait(30)
    for wrong in ("", "000000", "abcd-efgh", "x" * 65, "$ne"):
        answer = await ada.post(STEP, code=wrong)
        assert (answer.status, bool(answer.error("code"))) == (422, True)
        assert answer.fields["code"] == ""
    assert await ada.me() is None
    code = app.code()
    answer = await ada.post(f"{STEP}?next=/posts/new", code=f" {code[:3]} {code[3:]}")
    assert (answer.status, answer.location) == (303, "/posts/new")
    session = await Session.get(await ada.session_id())
    assert session is not None
    assert (session.factor, session.remembered) == (Factor.TOTP, True)
    # RFC 6238, 5.2: a code that was used is used.
    thief = ada.another_device()
    assert (await thief.sign_in()).location == STEP
    assert (await thief.post(STEP, code=code)).status == 422
    wait(30)
    assert (await thief.post(STEP, code=code)).status == 422
    assert (await thief.post(STEP, code=app.code())).status == 303


async def test_the_next_page_is_kept_through_both_steps(ada: Visitor) -> None:
    await set_up(ada)
    await ada.post("/logout")
    fields = {"login": ada.username, "password": ada.password}
    answer = await ada.post("/login?next=/posts/new", **fields)
    assert answer.location == f"{STEP}?next=%2Fposts%2Fnew"
    assert 'action="/login/factor?next=' in (await ada.get(answer.location)).text
    evil = await ada.post(f"{STEP}?next=//evil.example", code=ada.codes[0])
    assert evil.location == FACTORS


async def test_the_second_step_expires_after_ten_minutes_or_a_new_password(
    visitors: Visitors, wait: Wait
) -> None:
    async def is_over(visitor: Visitor) -> bool:
        codes = visitor.codes
        answers = [
            await visitor.get(f"{STEP}?next=/posts"),
            await visitor.post(STEP, code=codes[0]),
        ]
        return [answer.location for answer in answers] == ["/login?next=%2Fposts", "/login"]

    ada = await before_second_step(visitors, "ada")
    wait(599)
    assert not await is_over(ada)
    late = await before_second_step(visitors, "late")
    wait(601)
    assert await is_over(late)
    for number, change in enumerate(
        ({"password_hash": "x"}, {"disabled_at": clock.now()}, {"totp": None})
    ):
        visitor = await before_second_step(visitors, f"changed-{number}")
        await User.change({"username": visitor.username}, {"$set": change})
        assert await is_over(visitor)
    assert await is_over(Visitor(visitors.app, codes=["x"])), "a visitor without a password step"


async def test_the_second_step_is_bound_to_its_user(visitors: Visitors) -> None:
    """Encrypted cookies are bound to their purpose: an offered secret is not a password step."""
    ada = await before_second_step(visitors, "ada")
    eve = await visitors.member("eve")
    await eve.get(TOTP)
    encryption = runtime_of(visitors.app).encryption
    assert (
        encryption.decrypt_value(
            encryption.encrypt_value(["x"], "offer"), "second step", max_age=timedelta(1)
        )
        is None
    )
    assert (await ada.post(STEP, code=app_code(secret_on(await eve.get(TOTP))))).status == 422


async def test_a_wrong_password_gets_the_same_answer_with_and_without_factor(
    visitors: Visitors, ada: Visitor
) -> None:
    await visitors.member("bob")
    await set_up(ada)
    answers = []
    for name in ("ada", "bob", "nobody"):
        visitor = Visitor(visitors.app, name, "not the password")
        answer = await visitor.sign_in()
        text = answer.anonymized.replace(f'value="{name}"', "")
        answers.append((answer.status, text, sorted(answer.headers.keys())))
    assert answers[0] == answers[1] == answers[2]


async def test_wrong_codes_are_limited_after_the_right_password(
    visitors: Visitors, ada: Visitor, wait: Wait
) -> None:
    app = await set_up(ada)
    await ada.post("/logout")
    thief = ada.another_device("192.0.2.66")
    await thief.sign_in()
    for _ in range(5):
        assert (await thief.post(STEP, code="000000")).status == 422
    assert (await thief.post(STEP, code="000000")).status in (422, 429)
    later = await thief.post(STEP, code=app.code(later=30))
    assert later.status == 429
    assert int(later.headers["Retry-After"]) >= 1
    assert "Too many attempts" in later.text
    # The owner is notified once, because the attacker knows the password.
    (told,) = await visitors.emails(ada.email, "Somebody may know your password")
    assert "192.0.2.66" in told
    (notice,) = await documents("notices", kind="codes.refused")
    assert notice["user"].id == (await user_named("ada")).id
    # Other addresses share the limit; the owner's known browser has its own.
    elsewhere = ada.another_device("198.51.100.7")
    await elsewhere.sign_in()
    assert (await elsewhere.post(STEP, code="000000")).status == 429
    assert (await ada.sign_in()).location == STEP
    assert (await ada.post(STEP, code=app.code(later=30))).status == 303


# ---- recovery


async def test_no_code_is_accepted_after_a_hundred_wrong_codes_in_a_row(
    visitors: Visitors, ada: Visitor
) -> None:
    await set_up(ada)
    user = await user_named("ada")

    async def guess(known: bool) -> bool:
        with suppress(FactorsBlocked):
            await wrong_codes.begin(user, known=known)
            return True
        return False

    assert sum(await asyncio.gather(*(guess(known=True) for _ in range(30)))) == 20
    assert sum(await asyncio.gather(*(guess(known=False) for _ in range(90)))) == 80
    with pytest.raises(FactorsBlocked):
        await wrong_codes.begin(user, known=False)
    await user.change_password("another", by=SYSTEM)
    assert await wrong_codes.begin(await user_named("ada"), known=False) is False


async def test_too_many_wrong_codes_block_unknown_browsers_only(
    visitors: Visitors, ada: Visitor
) -> None:
    await set_up(ada)
    user = await user_named("ada")
    counted = {"credential": user.credential, "others": 79, "known": 0}
    await User.change({"_id": user.id}, {"$set": {"wrong_codes": counted}})
    eve = ada.another_device("198.51.100.1")
    await eve.sign_in()
    assert (await eve.post(STEP, code="000000")).error("code")
    (told,) = await visitors.emails(ada.email, "Codes no longer sign in")
    assert "198.51.100.1" in told
    (event,) = await Event.find({"verb": CODES_BLOCKED.audit}).to_list()
    assert event.subject is not None
    assert "codes no longer sign in" in (await ada.get("/account/timeline")).text
    for code in (ada.codes[0], "000000"):
        refused = await eve.post(STEP, code=code)
        assert refused.status == 422
        assert "too many wrong codes" in refused.text
    assert (
        "too many wrong codes" in (await eve.post("/login/passkey", credential="{}", step="y")).text
    )
    # The owner's browser has a count of its own. Its right code does not unblock others.
    await repeat_password_step(ada)
    assert (await ada.post(STEP, code=ada.codes[0])).status == 303
    assert "too many wrong codes" in (await eve.post(STEP, code=ada.codes[1])).text
    # A new password resets the count.
    await (await user_named("ada")).change_password(user.password_hash + " ", by=SYSTEM)
    assert await wrong_codes.begin(await user_named("ada"), known=False) is False


async def test_a_right_code_resets_the_count_of_wrong_codes(ada: Visitor) -> None:
    await set_up(ada)
    await repeat_password_step(ada)
    for _ in range(2):
        assert (await ada.post(STEP, code="000000")).status == 422
    assert (await ada.post("/login/passkey", credential="{}", step="y")).status == 422
    counted = (await user_named("ada")).wrong_codes
    assert counted is not None
    assert (counted.known, counted.others) == (3, 0)
    assert (await ada.post(STEP, code=ada.codes[0])).status == 303
    counted = (await user_named("ada")).wrong_codes
    assert counted is not None
    assert counted.known == 0


async def test_a_recovery_code_signs_in_once_and_sends_an_email(
    visitors: Visitors, ada: Visitor
) -> None:
    await set_up(ada)
    await repeat_password_step(ada)
    answer = await ada.post(STEP, code=ada.codes[3].upper().replace("-", " "))
    assert (answer.status, answer.location) == (303, FACTORS)
    page = await ada.get(FACTORS)
    assert 'class="flash flash-warning"' in page.text
    assert "9 recovery codes left" in page.text
    assert "Codes left: 9." in (await ada.get("/account/notices")).text
    (letter,) = await visitors.emails(ada.email, "recovery code was used")
    assert "Codes left: 9" in letter
    await repeat_password_step(ada)
    assert (await ada.post(STEP, code=ada.codes[3])).status == 422


async def test_removing_the_app_sends_an_email_and_allows_password_sign_in(
    visitors: Visitors, ada: Visitor
) -> None:
    await set_up(ada)
    assert (await ada.post(f"{TOTP}/remove")).location == FACTORS
    assert "does not sign out your other devices" in (await ada.get(FACTORS)).text
    (letter,) = await visitors.emails(ada.email, "factor was removed")
    assert "authenticator app" in letter
    assert "You have no recovery codes" in (await ada.get(CODES)).text
    await ada.post("/logout")
    assert (await ada.sign_in()).location == "/"
    assert await ada.me()


async def test_an_administrator_resets_lost_factors(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    await set_up(ada)
    page = await root.get("/admin/users/ada")
    assert "authenticator app" in page.text
    assert (await root.post("/admin/users/ada/factors/reset")).location == "/admin/users/ada"
    assert "factors/reset" not in (await root.get("/admin/users/ada")).text
    assert await ada.me() is None
    session = (await documents("sessions", ended_reason=Reason.ENDED_BY_ADMIN.value))[0]
    assert session["user"].id == (await user_named("ada")).id
    event = (await Event.page(limit=1))[0]
    assert (event.verb, event.subject.username) == (FACTORS_RESET.audit, "ada")  # type: ignore[union-attr]
    (letter,) = await visitors.emails(ada.email, "Your second factors were removed")
    assert "root removed all" in letter
    assert (await ada.sign_in()).location == "/"
    assert (
        "had no second factor"
        in (await root.get((await root.post("/admin/users/ada/factors/reset")).location)).text
    )


# ---- roles that require a factor


async def test_a_user_without_required_factor_is_sent_to_set_it_up(
    visitors: Visitors, root: Visitor
) -> None:
    await require(ADMIN)
    answer = await root.get("/admin/users?q=a")
    assert (answer.status, answer.location) == (302, f"{FACTORS}?next=%2Fadmin%2Fusers%3Fq%3Da")
    assert FACTORS in (await root.get("/")).links, "each page shows the notice"
    page = await root.get(answer.location)
    assert "The role admin requires a second factor" in page.text
    refused = await root.post("/admin/users/root/disable")
    assert refused.status == 403
    assert FACTORS in [link.partition("?")[0] for link in refused.links]
    assert (await root.get("/admin/roles/admin")).status == 302
    (onward,) = [link for link in page.links if link.startswith(TOTP)]
    code = app_code(secret_on(await root.get(onward)))
    done = await root.post(onward, code=code)
    shown = await root.get(done.location)
    assert "/admin/users?q=a" in shown.links
    assert (await root.get("/admin/users?q=a")).status == 200
    # Permissions of no role of the user are refused with 403.
    ada = await visitors.member("ada")
    assert (await ada.get("/admin/users")).status == 403


async def test_open_pages_hear_of_a_new_factor_requirement(
    visitors: Visitors, root: Visitor
) -> None:
    page = "/admin/roles/moderator"
    mod = await visitors.signed_in("mod", await role_named("moderator"))
    async with mod.client.websocket("/ws", headers={"Origin": ORIGIN}, scope_base=mod.scope) as tab:

        async def heard(kind: str) -> dict[str, list[str]]:
            while (message := await tab.receive_json())["type"] != kind:
                pass
            return message

        hello = await heard("hello")
        gone = sorted(hello["permissions"])
        fields = {"name": "moderator", "permissions": gone, "description": "Keeps."}
        answer = await root.post(page, **fields, requires_factor="y")
        assert answer.status == 303
        assert sorted((await heard("permissions.changed"))["removed"]) == gone
        assert (await mod.me() or {})["permissions"] == []
        await set_up(mod)
        assert sorted((await heard("permissions.changed"))["added"]) == gone
    ticked = re.search(r"<input[^>]*requires_factor[^>]*>", (await root.get(page)).text)
    assert ticked
    assert "checked" in ticked[0]
    assert (await root.post(page, **fields)).status == 303
    assert not (await role_named("moderator")).requires_factor


async def test_the_factor_requirement_of_the_admin_role_is_set_on_its_page(root: Visitor) -> None:
    page = await root.get("/admin/roles/admin")
    fields = {k: v for k, v in page.fields.items() if k in ("name", "description")}
    before = await role_named(ADMIN)
    assert (await root.post("/admin/roles/admin", **fields, requires_factor="y")).status == 303
    after = await role_named(ADMIN)
    assert after.requires_factor
    assert after.permissions == before.permissions
    assert (await root.get("/admin/roles")).status == 302
    await set_up(root)
    assert (await root.post("/admin/roles/admin", **fields)).status == 303
    assert not (await role_named(ADMIN)).requires_factor
    made = await root.post("/admin/roles/new", name="editor", requires_factor="y")
    assert made.status == 303
    assert (await role_named("editor")).requires_factor
