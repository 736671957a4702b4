"""Second factors: codes of an app, recovery codes, and the sessions and roles they affect."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from pyotp.totp import TOTP

from quartapp import clock
from quartapp.activities import RECOVERY_CODE_USED
from quartapp.authority.session_rule import Principal
from quartapp.authority.session_states import state_by_digest
from quartapp.db.mongo import Database
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import RightsChanged
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.tokens import digest_of
from quartapp.models.email.outbox import Mail
from quartapp.models.factors import enrolment, recovery_codes, totp
from quartapp.models.factors.enrolment import Enrolled, HasFactor
from quartapp.models.factors.factor import Factor
from quartapp.models.factors.recovery_codes import NothingToRecover
from quartapp.models.factors.totp import SECONDS, WrongAppCode
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles.refusals import BuiltInRole
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.policy import ADMIN, Permission
from quartapp.security.encryption import Encryption
from tests.integration.models.helpers import (
    acting,
    concurrently,
    dump,
    end_reason,
    not_none,
    only_accepting,
    race,
    register,
    reloaded,
    role,
    sign_in,
)

ENCRYPTION = Encryption(["canary key"])
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Stop the clock. The returned function advances it by a number of seconds."""
    moment = [clock.now()]
    monkeypatch.setattr(clock, "now", lambda: moment[0])

    def wait(seconds: float) -> None:
        moment[0] += timedelta(seconds=seconds)

    return wait


def code(*, steps: int = 0) -> str:
    """Return the code that an app shows, `steps` time steps from now."""
    return TOTP(SECRET).at(int(clock.now().timestamp()) + steps * SECONDS)


async def principal_of(token: str) -> Principal:
    found = await state_by_digest(digest_of(token))
    assert isinstance(found, Principal), found
    return found


async def at_a_page(token: str) -> Actor:
    """Return the actor of a request of this session."""
    who = await principal_of(token)
    return Actor(
        who.user_id, who.username, "192.0.2.7", who.session_id, who.version, who.permissions
    )


async def with_app(name: str, *roles: str) -> tuple[User, Enrolled]:
    """Return a new user who has set up an app in a session of their own."""
    user = await register(name, *roles)
    _, token = await sign_in(user)
    by = await at_a_page(token)
    done = await totp.set_up(user, SECRET, code(steps=-1), encryption=ENCRYPTION, by=by)
    return await reloaded(user), done


async def told(user: User) -> tuple[set[str], set[str], set[str]]:
    """Return the kinds of the user's notifications, emails and audit events."""
    mine = {"user.$id": user.id}
    return (
        {each.kind for each in await Notice.find(mine).to_list()},
        {each.kind for each in await Mail.find(mine).to_list()},
        {each.verb for each in await Event.find({"subject.$id": user.id}).to_list()},
    )


async def is_told(user: User, word: str) -> None:
    assert [word in kinds for kinds in await told(user)] == [True, True, True]


# ---- TOTP codes


async def test_a_totp_code_is_accepted_once_and_older_codes_are_refused(
    db: Database, wait: Wait
) -> None:
    ada, _ = await with_app("ada")
    assert not await totp.accept(ada, code(steps=-1), encryption=ENCRYPTION), (
        "the code that set up the app"
    )
    shown = code()
    assert await totp.accept(ada, shown, encryption=ENCRYPTION)
    assert not await totp.accept(await reloaded(ada), shown, encryption=ENCRYPTION)
    wait(SECONDS)
    assert not await totp.accept(await reloaded(ada), shown, encryption=ENCRYPTION)
    assert await totp.accept(await reloaded(ada), code(steps=1), encryption=ENCRYPTION)
    assert not await totp.accept(await reloaded(ada), code(), encryption=ENCRYPTION)
    wait(SECONDS)
    assert not await totp.accept(await reloaded(ada), code(), encryption=ENCRYPTION)
    wait(SECONDS)
    assert await totp.accept(await reloaded(ada), code(), encryption=ENCRYPTION)


@pytest.mark.parametrize(
    ("steps", "fits"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)]
)
async def test_a_totp_code_may_be_one_time_step_off(
    db: Database, wait: Wait, steps: int, fits: bool
) -> None:
    ada, _ = await with_app("ada")
    wait(10 * SECONDS)
    assert await totp.accept(ada, code(steps=steps), encryption=ENCRYPTION) is (abs(steps) <= 1)


@race(10, short=2)
async def test_concurrent_uses_of_one_totp_code_succeed_once(
    db: Database, wait: Wait, rounds: range
) -> None:
    ada, _ = await with_app("ada")
    for _ in rounds:
        wait(SECONDS)
        shown = code()
        accepted = await concurrently(
            *(totp.accept(ada, shown, encryption=ENCRYPTION) for _ in range(8))
        )
        assert accepted.count(True) == 1


async def test_a_wrong_code_does_not_set_up_an_app(db: Database, wait: Wait) -> None:
    ada = await register("ada")
    _, token = await sign_in(ada)
    with pytest.raises(WrongAppCode):
        await totp.set_up(
            ada, SECRET, code(steps=5), encryption=ENCRYPTION, by=await at_a_page(token)
        )
    assert (await reloaded(ada)).factors == frozenset()
    assert await end_reason(token) is None


async def test_concurrent_set_ups_of_an_app_succeed_once(db: Database, wait: Wait) -> None:
    ada = await register("ada")
    _, token = await sign_in(ada)
    by = await at_a_page(token)
    works = [totp.set_up(ada, SECRET, code(), encryption=ENCRYPTION, by=by) for _ in range(4)]
    (done,) = await concurrently(*works, unless=HasFactor)
    kept = (await reloaded(ada)).recovery_codes
    assert kept == [recovery_codes.digest(ada, each) for each in done.codes]


# ---- encryption


async def test_the_database_has_no_totp_secret_and_no_code_in_clear(
    db: Database, wait: Wait
) -> None:
    ada, done = await with_app("ada")
    await recovery_codes.use(ada, done.codes[0], by=acting(ada))
    stored = json.dumps(await dump(db), default=str).casefold()
    for word in (SECRET, *done.codes, *map(recovery_codes.read, done.codes), not_none(done.token)):
        assert word.casefold() not in stored
    assert not_none(ada.totp).sealed not in repr(ada)
    assert ada.recovery_codes[0] not in repr(ada)
    assert done.codes[0] not in repr(done)


async def test_an_encrypted_secret_is_bound_to_its_user_and_survives_key_rotation(
    db: Database, wait: Wait
) -> None:
    ada, _ = await with_app("ada")
    eve = await register("eve")
    await User.change({"_id": eve.id}, {"$set": {"totp": not_none(ada.totp).model_dump()}})
    assert not await totp.accept(await reloaded(eve), code(), encryption=ENCRYPTION)
    assert not await totp.accept(ada, code(), encryption=Encryption(["another key"]))
    newer = Encryption(["new key", "canary key"])
    assert await totp.accept(ada, code(), encryption=newer)
    wait(SECONDS)
    assert await totp.accept(await reloaded(ada), code(), encryption=Encryption(["new key"]))


@pytest.mark.parametrize("garbage", ["", "x", "ü", "====", "QUJD", "QUJD" * 20])
def test_decrypting_an_invalid_ciphertext_returns_none(garbage: str) -> None:
    assert ENCRYPTION.decrypt(garbage, "a") is None
    assert ENCRYPTION.decrypt_value(garbage, "a", max_age=timedelta(hours=1)) is None
    assert ENCRYPTION.decrypt_value(None, "a", max_age=timedelta(hours=1)) is None


def test_an_encrypted_value_is_bound_to_its_purpose_and_expires(wait: Wait) -> None:
    sealed, hour = ENCRYPTION.encrypt_value(["x"], "a"), timedelta(hours=1)
    assert ENCRYPTION.decrypt_value(sealed, "b", max_age=hour) is None
    wait(3600)
    assert ENCRYPTION.decrypt_value(sealed, "a", max_age=hour) == ["x"]
    wait(0.001)
    assert ENCRYPTION.decrypt_value(sealed, "a", max_age=hour) is None


# ---- recovery codes


async def test_a_recovery_code_is_accepted_once_in_each_spelling(db: Database, wait: Wait) -> None:
    ada, done = await with_app("ada")
    eve, _ = await with_app("eve")
    assert len(set(done.codes)) == recovery_codes.HOW_MANY
    first, second, third = done.codes[:3]
    assert await recovery_codes.use(eve, first, by=acting(eve)) is None
    typed = (
        first,
        second.upper().replace("-", " "),
        third.replace("-", "").replace("0", "O").replace("1", "l"),
    )
    for number, text in enumerate(typed, start=1):
        left = recovery_codes.HOW_MANY - number
        assert await recovery_codes.use(ada, text, by=acting(ada)) == left
        assert await recovery_codes.use(ada, text, by=acting(ada)) is None
    await is_told(ada, "recovery_code.used")


async def test_concurrent_uses_of_one_recovery_code_succeed_once(db: Database, wait: Wait) -> None:
    ada, done = await with_app("ada")
    for each in done.codes:
        works = (recovery_codes.use(ada, each, by=acting(ada)) for _ in range(4))
        assert len([left for left in await concurrently(*works) if left is not None]) == 1
    assert (await reloaded(ada)).recovery_codes == []
    assert len(await Event.find({"verb": RECOVERY_CODE_USED.audit}).to_list()) == len(done.codes)


async def test_new_recovery_codes_void_the_old_ones_and_require_a_factor(
    db: Database, wait: Wait
) -> None:
    ada, done = await with_app("ada")
    by = await at_a_page(not_none(done.token))
    new = await recovery_codes.renew(ada, by=by)
    assert await recovery_codes.use(ada, done.codes[0], by=acting(ada)) is None
    assert await recovery_codes.use(ada, new[0], by=acting(ada)) == recovery_codes.HOW_MANY - 1
    await is_told(ada, "recovery_codes.made")
    await totp.remove(ada, by=by)
    with pytest.raises(NothingToRecover):
        await recovery_codes.renew(ada, by=await at_a_page(not_none(done.token)))


# ---- sessions


async def test_setting_up_the_first_factor_ends_the_other_sessions(
    db: Database, wait: Wait
) -> None:
    ada = await register("ada")
    mine, token = await sign_in(ada)
    _, other = await sign_in(ada)
    with_one, _ = await sign_in(ada)
    await Session.change({"_id": with_one.id}, {"$set": {"factor": "passkey"}})
    done = await totp.set_up(ada, SECRET, code(), encryption=ENCRYPTION, by=await at_a_page(token))
    assert await state_by_digest(digest_of(token)) is None, "the old token is void"
    assert (await principal_of(not_none(done.token))).session_id == mine.id
    assert not_none(await Session.get(mine.id)).factor is Factor.TOTP
    assert await Session.find({"ended_event.$id": done.event.id}).count() == 1
    assert await end_reason(other) is Reason.FACTOR_REQUIRED
    assert not_none(await Session.get(with_one.id)).ended_at is None
    await is_told(ada, "factor.added")


async def test_a_session_without_the_required_factor_is_refused(db: Database, wait: Wait) -> None:
    ada, _ = await with_app("ada")
    _, token = await sign_in(ada)
    assert await end_reason(token) is Reason.FACTOR_REQUIRED


async def test_setting_up_an_app_is_atomic(db: Database, wait: Wait) -> None:
    ada = await register("ada")
    _, token = await sign_in(ada)
    by = await at_a_page(token)
    for collection in ("sessions", "events", "notices", "outbox"):
        before = await dump(db)
        async with only_accepting(db, collection, {"_id": {"$exists": False}}):
            with pytest.raises(Exception, match="validation"):
                await totp.set_up(ada, SECRET, code(), encryption=ENCRYPTION, by=by)
        assert await dump(db) == before


async def test_removing_the_last_factor_removes_the_recovery_codes(
    db: Database, wait: Wait
) -> None:
    ada, done = await with_app("ada")
    by = await at_a_page(not_none(done.token))
    assert await totp.remove(ada, by=by)
    left = await reloaded(ada)
    assert (left.factors, left.recovery_codes) == (frozenset(), [])
    await is_told(ada, "factor.removed")
    assert await totp.remove(ada, by=await at_a_page(not_none(done.token))) is None
    assert await end_reason(not_none(done.token)) is None


async def test_a_factor_reset_removes_all_factors_and_ends_the_sessions(
    db: Database, wait: Wait
) -> None:
    root = await register("root", ADMIN)
    ada, done = await with_app("ada")
    event = not_none(await enrolment.reset(ada, by=acting(root)))
    left = await reloaded(ada)
    assert (left.factors, left.recovery_codes) == (frozenset(), [])
    assert await end_reason(not_none(done.token)) is Reason.ENDED_BY_ADMIN
    assert not_none(await Session.find_one({"ended_event.$id": event.id}))
    await is_told(ada, "factors.reset")
    before = await dump(db)
    assert await enrolment.reset(await reloaded(ada), by=acting(root)) is None
    assert await dump(db) == before
    _, token = await sign_in(await reloaded(ada))
    assert await end_reason(token) is None


# ---- roles that require a factor


async def require(name: str, required: bool = True) -> None:
    found = await role(name)
    await found.edit(
        name=name,
        description=found.description,
        permissions=found.known,
        requires_factor=required,
        by=SYSTEM,
    )


async def test_a_role_that_requires_a_factor_is_withheld_without_one(
    db: Database, wait: Wait
) -> None:
    ada = await register("ada", "moderator", "member")
    _, token = await sign_in(ada)
    await require("moderator")
    who = await principal_of(token)
    assert who.roles == ("member", "moderator")
    assert (who.permissions, who.withheld) == ({"posts.write"}, {"moderator"})
    assert who.withheld_permissions == {"posts.moderate", "users.read"}
    done = await totp.set_up(ada, SECRET, code(), encryption=ENCRYPTION, by=await at_a_page(token))
    after = await principal_of(not_none(done.token))
    assert after.permissions == {"posts.write", "posts.moderate", "users.read"}
    assert (after.withheld, after.withheld_permissions) == (frozenset(), frozenset())
    assert after.version > who.version
    by = await at_a_page(not_none(done.token))
    await totp.remove(await reloaded(ada), by=by)
    assert (await principal_of(not_none(done.token))).withheld == {"moderator"}


async def test_a_permission_that_is_withheld_meanwhile_cannot_be_used(
    db: Database, wait: Wait
) -> None:
    root = await register("root", ADMIN)
    eve = await register("eve", "member")
    _, token = await sign_in(root)
    by = await at_a_page(token)
    await require(ADMIN)
    with pytest.raises(RightsChanged):
        await eve.grant(await role("moderator"), by=by)
    done = await totp.set_up(root, SECRET, code(), encryption=ENCRYPTION, by=await at_a_page(token))
    with_factor = await at_a_page(not_none(done.token))
    await require("moderator")
    # The version has changed since, but no permission was removed.
    await require(ADMIN, False)
    assert await eve.grant(await role("moderator"), by=with_factor)


async def test_only_the_factor_requirement_of_the_admin_role_can_change(
    db: Database,
) -> None:
    await require(ADMIN)
    admin = await role(ADMIN)
    assert admin.requires_factor
    edited = {"name": ADMIN, "description": admin.description, "permissions": admin.known}
    for change in ({"description": "x"}, {"permissions": [Permission.POSTS_WRITE]}, {"name": "x"}):
        with pytest.raises(BuiltInRole):
            await admin.edit(**{**edited, **change}, requires_factor=False, by=SYSTEM)
    assert (await role(ADMIN)).requires_factor
    event = (await Event.page(limit=1))[0]
    assert event.details == {
        "role": ADMIN,
        "allowed": [],
        "forbidden": [],
        "requires_factor": True,
        "version": (await role(ADMIN)).version,
    }
    made = await Role.add("editor", "", [], requires_factor=True, by=SYSTEM)
    await made.edit(name="editor", description="x", permissions=[], by=SYSTEM)
    assert (await role("editor")).requires_factor, "an omitted value is kept"
