"""Second factors: what a code is worth, who is let in with it, and what goes when it goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from pyotp.totp import TOTP

from quartapp import clock
from quartapp.authority.session_rule import Principal, by_digest
from quartapp.db.mongo import Database
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event, Verb
from quartapp.models.authorization.transaction import RightsChanged
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.base.tokens import digest_of
from quartapp.models.email.outbox import Mail
from quartapp.models.factors import enrolment, recovery_codes, totp
from quartapp.models.factors.enrolment import Enrolled, HasFactor
from quartapp.models.factors.factor import Factor
from quartapp.models.factors.recovery_codes import NothingToRecover
from quartapp.models.factors.totp import SECONDS, WrongAppCode
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles.role import BuiltInRole, Role
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.policy import ADMIN, Permission
from quartapp.security.encryption import Encryption
from tests.models.stories import (
    accepting,
    acting,
    again,
    at_once,
    dump,
    race,
    register,
    role,
    sign_in,
    some,
    why_over,
)

ENCRYPTION = Encryption(["canary key"])
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Time stands still but for what is waited for, so that no half minute ends on its own."""
    moment = [clock.now()]
    monkeypatch.setattr(clock, "now", lambda: moment[0])

    def wait(seconds: float) -> None:
        moment[0] += timedelta(seconds=seconds)

    return wait


def code(*, steps: int = 0) -> str:
    """What an app shows, now or so many half minutes from now."""
    return TOTP(SECRET).at(int(clock.now().timestamp()) + steps * SECONDS)


async def standing(token: str) -> Principal:
    found = await by_digest(digest_of(token))
    assert isinstance(found, Principal), found
    return found


async def at_a_page(token: str) -> Actor:
    """Who acts from a page of the session."""
    who = await standing(token)
    return Actor(
        who.user_id, who.username, "192.0.2.7", who.session_id, who.version, who.permissions
    )


async def with_app(name: str, *roles: str) -> tuple[User, Enrolled]:
    """Somebody who has set up an app in a session of theirs."""
    user = await register(name, *roles)
    _, token = await sign_in(user)
    by = await at_a_page(token)
    done = await totp.set_up(user, SECRET, code(steps=-1), encryption=ENCRYPTION, by=by)
    return await again(user), done


async def told(user: User) -> tuple[set[str], set[str], set[str]]:
    """The kinds of notices, letters and events about somebody."""
    mine = {"user.$id": user.id}
    return (
        {each.kind.value for each in await Notice.find(mine).to_list()},
        {each.letter.value for each in await Mail.find(mine).to_list()},
        {each.verb.value for each in await Event.find({"subject.$id": user.id}).to_list()},
    )


async def is_told(user: User, word: str) -> None:
    assert [word in kinds for kinds in await told(user)] == [True, True, True]


# ---- codes of an app


async def test_a_code_is_good_once_and_none_before_it_is_good_after_it(
    db: Database, wait: Wait
) -> None:
    ada, _ = await with_app("ada")
    assert not await totp.accept(ada, code(steps=-1), encryption=ENCRYPTION), "it turned the app on"
    shown = code()
    assert await totp.accept(ada, shown, encryption=ENCRYPTION)
    assert not await totp.accept(await again(ada), shown, encryption=ENCRYPTION)
    wait(SECONDS)
    assert not await totp.accept(await again(ada), shown, encryption=ENCRYPTION)
    assert await totp.accept(await again(ada), code(steps=1), encryption=ENCRYPTION)
    assert not await totp.accept(await again(ada), code(), encryption=ENCRYPTION)
    wait(SECONDS)
    assert not await totp.accept(await again(ada), code(), encryption=ENCRYPTION)
    wait(SECONDS)
    assert await totp.accept(await again(ada), code(), encryption=ENCRYPTION)


@pytest.mark.parametrize(
    ("steps", "fits"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)]
)
async def test_a_clock_may_be_one_step_off(
    db: Database, wait: Wait, steps: int, fits: bool
) -> None:
    ada, _ = await with_app("ada")
    wait(10 * SECONDS)
    assert await totp.accept(ada, code(steps=steps), encryption=ENCRYPTION) is (abs(steps) <= 1)


@race(10, short=2)
async def test_of_many_with_one_code_at_once_one_is_let_in(
    db: Database, wait: Wait, rounds: range
) -> None:
    ada, _ = await with_app("ada")
    for _ in rounds:
        wait(SECONDS)
        shown = code()
        let_in = await at_once(*(totp.accept(ada, shown, encryption=ENCRYPTION) for _ in range(8)))
        assert let_in.count(True) == 1


async def test_a_wrong_code_turns_nothing_on(db: Database, wait: Wait) -> None:
    ada = await register("ada")
    _, token = await sign_in(ada)
    with pytest.raises(WrongAppCode):
        await totp.set_up(
            ada, SECRET, code(steps=5), encryption=ENCRYPTION, by=await at_a_page(token)
        )
    assert (await again(ada)).factors == frozenset()
    assert await why_over(token) is None


async def test_of_two_who_set_up_an_app_at_once_one_has_done_it(db: Database, wait: Wait) -> None:
    ada = await register("ada")
    _, token = await sign_in(ada)
    by = await at_a_page(token)
    works = [totp.set_up(ada, SECRET, code(), encryption=ENCRYPTION, by=by) for _ in range(4)]
    (done,) = await at_once(*works, unless=HasFactor)
    kept = (await again(ada)).recovery_codes
    assert kept == [recovery_codes.digest(ada, each) for each in done.codes]


# ---- what the database holds


async def test_neither_secret_nor_codes_stand_in_the_database(db: Database, wait: Wait) -> None:
    ada, done = await with_app("ada")
    await recovery_codes.use(ada, done.codes[0], by=acting(ada))
    stored = json.dumps(await dump(db), default=str).casefold()
    for word in (SECRET, *done.codes, *map(recovery_codes.read, done.codes), some(done.token)):
        assert word.casefold() not in stored
    assert some(ada.totp).sealed not in repr(ada)
    assert ada.recovery_codes[0] not in repr(ada)
    assert done.codes[0] not in repr(done)


async def test_a_secret_opens_for_nobody_else_and_survives_a_change_of_keys(
    db: Database, wait: Wait
) -> None:
    ada, _ = await with_app("ada")
    eve = await register("eve")
    await User.change({"_id": eve.id}, {"$set": {"totp": some(ada.totp).model_dump()}})
    assert not await totp.accept(await again(eve), code(), encryption=ENCRYPTION)
    assert not await totp.accept(ada, code(), encryption=Encryption(["another key"]))
    newer = Encryption(["new key", "canary key"])
    assert await totp.accept(ada, code(), encryption=newer)
    wait(SECONDS)
    assert await totp.accept(await again(ada), code(), encryption=Encryption(["new key"]))


@pytest.mark.parametrize("garbage", ["", "x", "ü", "====", "QUJD", "QUJD" * 20])
def test_what_nobody_sealed_opens_as_nothing(garbage: str) -> None:
    assert ENCRYPTION.decrypt(garbage, "a") is None
    assert ENCRYPTION.decrypt_value(garbage, "a", max_age=timedelta(hours=1)) is None
    assert ENCRYPTION.decrypt_value(None, "a", max_age=timedelta(hours=1)) is None


def test_what_was_handed_out_is_taken_back_for_the_same_thing_and_in_time(wait: Wait) -> None:
    sealed, hour = ENCRYPTION.encrypt_value(["x"], "a"), timedelta(hours=1)
    assert ENCRYPTION.decrypt_value(sealed, "b", max_age=hour) is None
    wait(3600)
    assert ENCRYPTION.decrypt_value(sealed, "a", max_age=hour) == ["x"]
    wait(0.001)
    assert ENCRYPTION.decrypt_value(sealed, "a", max_age=hour) is None


# ---- recovery codes


async def test_a_recovery_code_is_good_once_however_it_is_typed(db: Database, wait: Wait) -> None:
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


async def test_of_many_with_one_recovery_code_at_once_one_is_let_in(
    db: Database, wait: Wait
) -> None:
    ada, done = await with_app("ada")
    for each in done.codes:
        works = (recovery_codes.use(ada, each, by=acting(ada)) for _ in range(4))
        assert len([left for left in await at_once(*works) if left is not None]) == 1
    assert (await again(ada)).recovery_codes == []
    assert len(await Event.find({"verb": Verb.RECOVERY_CODE_USED}).to_list()) == len(done.codes)


async def test_new_codes_void_the_old_ones_and_are_for_those_who_have_a_factor(
    db: Database, wait: Wait
) -> None:
    ada, done = await with_app("ada")
    by = await at_a_page(some(done.token))
    new = await recovery_codes.renew(ada, by=by)
    assert await recovery_codes.use(ada, done.codes[0], by=acting(ada)) is None
    assert await recovery_codes.use(ada, new[0], by=acting(ada)) == recovery_codes.HOW_MANY - 1
    await is_told(ada, "recovery_codes.made")
    await totp.remove(ada, by=by)
    with pytest.raises(NothingToRecover):
        await recovery_codes.renew(ada, by=await at_a_page(some(done.token)))


# ---- sessions


async def test_the_session_that_sets_up_the_first_factor_has_shown_it_and_the_others_are_over(
    db: Database, wait: Wait
) -> None:
    ada = await register("ada")
    mine, token = await sign_in(ada)
    _, other = await sign_in(ada)
    with_one, _ = await sign_in(ada)
    await Session.change({"_id": with_one.id}, {"$set": {"factor": "passkey"}})
    done = await totp.set_up(ada, SECRET, code(), encryption=ENCRYPTION, by=await at_a_page(token))
    assert await by_digest(digest_of(token)) is None, "the old token is dead"
    assert (await standing(some(done.token))).session_id == mine.id
    assert some(await Session.get(mine.id)).factor is Factor.TOTP
    assert await Session.find({"ended_event.$id": done.event.id}).count() == 1
    assert await why_over(other) is Reason.FACTOR_REQUIRED
    assert some(await Session.get(with_one.id)).ended_at is None
    await is_told(ada, "factor.added")


async def test_a_session_opened_meanwhile_by_the_password_alone_is_over_from_the_start(
    db: Database, wait: Wait
) -> None:
    ada, _ = await with_app("ada")
    _, token = await sign_in(ada)
    assert await why_over(token) is Reason.FACTOR_REQUIRED


async def test_all_of_setting_up_is_done_or_nothing(db: Database, wait: Wait) -> None:
    ada = await register("ada")
    _, token = await sign_in(ada)
    by = await at_a_page(token)
    for collection in ("sessions", "events", "notices", "outbox"):
        before = await dump(db)
        async with accepting(db, collection, {"_id": {"$exists": False}}):
            with pytest.raises(Exception, match="validation"):
                await totp.set_up(ada, SECRET, code(), encryption=ENCRYPTION, by=by)
        assert await dump(db) == before


async def test_recovery_codes_go_with_the_last_factor(db: Database, wait: Wait) -> None:
    ada, done = await with_app("ada")
    by = await at_a_page(some(done.token))
    assert await totp.remove(ada, by=by)
    left = await again(ada)
    assert (left.factors, left.recovery_codes) == (frozenset(), [])
    await is_told(ada, "factor.removed")
    assert await totp.remove(ada, by=await at_a_page(some(done.token))) is None
    assert await why_over(some(done.token)) is None


async def test_a_reset_takes_everything_and_ends_the_sessions(db: Database, wait: Wait) -> None:
    root = await register("root", ADMIN)
    ada, done = await with_app("ada")
    event = some(await enrolment.reset(ada, by=acting(root)))
    left = await again(ada)
    assert (left.factors, left.recovery_codes) == (frozenset(), [])
    assert await why_over(some(done.token)) is Reason.ENDED_BY_ADMIN
    assert some(await Session.find_one({"ended_event.$id": event.id}))
    await is_told(ada, "factors.reset")
    before = await dump(db)
    assert await enrolment.reset(await again(ada), by=acting(root)) is None
    assert await dump(db) == before
    _, token = await sign_in(await again(ada))
    assert await why_over(token) is None


# ---- roles that ask for one


async def require(name: str, required: bool = True) -> None:
    found = await role(name)
    await found.edit(
        name=name,
        description=found.description,
        permissions=found.known,
        requires_factor=required,
        by=NOBODY,
    )


async def test_a_role_gives_nothing_until_a_factor_is_shown(db: Database, wait: Wait) -> None:
    ada = await register("ada", "moderator", "member")
    _, token = await sign_in(ada)
    await require("moderator")
    who = await standing(token)
    assert who.roles == ("member", "moderator")
    assert (who.permissions, who.withheld) == ({"posts.write"}, {"moderator"})
    assert who.withheld_permissions == {"posts.moderate", "users.read"}
    done = await totp.set_up(ada, SECRET, code(), encryption=ENCRYPTION, by=await at_a_page(token))
    after = await standing(some(done.token))
    assert after.permissions == {"posts.write", "posts.moderate", "users.read"}
    assert (after.withheld, after.withheld_permissions) == (frozenset(), frozenset())
    assert after.version > who.version
    by = await at_a_page(some(done.token))
    await totp.remove(await again(ada), by=by)
    assert (await standing(some(done.token))).withheld == {"moderator"}


async def test_nothing_is_committed_with_what_waits_for_a_factor_by_then(
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
    with_factor = await at_a_page(some(done.token))
    await require("moderator")
    # Somebody raised the version meanwhile, but took nothing away.
    await require(ADMIN, False)
    assert await eve.grant(await role("moderator"), by=with_factor)


async def test_the_role_that_may_do_everything_can_only_be_told_to_ask_for_a_factor(
    db: Database,
) -> None:
    await require(ADMIN)
    admin = await role(ADMIN)
    assert admin.requires_factor
    edited = {"name": ADMIN, "description": admin.description, "permissions": admin.known}
    for change in ({"description": "x"}, {"permissions": [Permission.POSTS_WRITE]}, {"name": "x"}):
        with pytest.raises(BuiltInRole):
            await admin.edit(**{**edited, **change}, requires_factor=False, by=NOBODY)
    assert (await role(ADMIN)).requires_factor
    event = (await Event.page(limit=1))[0]
    assert event.details == {"role": ADMIN, "allowed": [], "forbidden": [], "requires_factor": True}
    made = await Role.add("editor", "", [], requires_factor=True, by=NOBODY)
    await made.edit(name="editor", description="x", permissions=[], by=NOBODY)
    assert (await role("editor")).requires_factor, "what is not said stays"
