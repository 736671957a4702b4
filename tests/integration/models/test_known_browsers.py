"""The known browsers of an account, and the actions that forget them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from quartapp import clock
from quartapp.activities import SIGNED_IN
from quartapp.db.mongo import Database
from quartapp.models.accounts.account import ForgottenBrowsers
from quartapp.models.accounts.user import User
from quartapp.models.audit import activity
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.record import new_id
from quartapp.models.email.outbox import Mail
from quartapp.models.factors import enrolment
from quartapp.models.sessions import session as sessions
from quartapp.models.sessions.opening import is_known_browser, open_session
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session, mark_ended
from quartapp.models.sessions.session_list import Wanted, active_page
from tests.integration.models.helpers import HOUR, acting, not_none, register, reloaded

MINE, THEIRS = "the owner's browser", "the intruder's browser"


async def opened(user: User, browser: str, ip: str = "192.0.2.7") -> Session:
    session, *_ = await open_session(
        *(user,),
        device="Firefox",
        browser=browser,
        by=Actor(user.id, user.username, ip),
        idle=HOUR,
        lifetime=HOUR,
    )
    return session


async def known(user: User, browser: str) -> bool:
    return await is_known_browser(await reloaded(user), browser=browser)


@pytest.fixture
async def ada(db: Database) -> User:
    await register("root", "admin")
    return await register("ada", "member")


def by(user: User, session: Session) -> Actor:
    return Actor(user.id, user.username, "192.0.2.7", session.id, version=user.authz_version)


async def change_password(ada: User, mine: Session) -> object:
    return await ada.change_password("new", by=by(ada, mine), keep=mine.id)


async def write_a_password_hash_into_the_database(ada: User, mine: Session) -> object:
    await User.change({"_id": ada.id}, {"$set": {"password_hash": "by hand"}})
    change = {"$set": {"credential": (await reloaded(ada)).credential}}
    return await Session.change({"_id": mine.id}, change)


async def report_a_sign_in(ada: User, mine: Session) -> object:
    match = {"verb": SIGNED_IN.audit}
    started = await Event.find(match, sort="-_id").to_list()
    return await activity.disown(started[0], by=by(ada, mine))


async def end_other_sessions(ada: User, mine: Session) -> object:
    return await ada.end_sessions(Reason.ENDED_BY_USER, by=by(ada, mine), keep=mine.id)


async def end_the_session(ada: User, mine: Session) -> object:
    other = (await Session.find({"browser": THEIRS}, sort="-_id").to_list())[0]
    return await other.end(Reason.ENDED_BY_USER, by=by(ada, mine))


SECURING: list[Callable[[User, Session], Awaitable[object]]] = [
    change_password,
    write_a_password_hash_into_the_database,
    report_a_sign_in,
    end_other_sessions,
    end_the_session,
]


@pytest.mark.parametrize("act", SECURING, ids=lambda act: act.__name__)
async def test_securing_the_account_forgets_all_browsers_but_the_one_in_use(
    ada: User, act: Callable[[User, Session], Awaitable[object]]
) -> None:
    mine = await opened(ada, MINE)
    old = await opened(ada, THEIRS, "198.51.100.1")
    await old.end(Reason.SIGNED_OUT, by=SYSTEM)
    await opened(ada, THEIRS, "198.51.100.1")
    assert await known(ada, THEIRS)
    assert await is_known_browser(ada, ip="198.51.100.1")
    await act(ada, mine)
    assert not await known(ada, THEIRS)
    assert await known(ada, MINE)
    if act is not end_the_session:
        assert not await is_known_browser(await reloaded(ada), ip="198.51.100.1")
    # The next sign-in from there sends an email and makes the browser known.
    before = await Mail.find({"letter": SIGNED_IN.email_kind}).count()
    await opened(await reloaded(ada), THEIRS)
    assert await Mail.find({"letter": SIGNED_IN.email_kind}).count() == before + 1
    assert await known(ada, THEIRS)


ALL: dict[str, Callable[[User], Awaitable[Any]]] = {
    "an administrator ends the sessions": lambda ada: ada.end_sessions(
        Reason.ENDED_BY_ADMIN, by=SYSTEM
    ),
    "an administrator resets the factors": lambda ada: enrolment.reset(ada, by=SYSTEM),
    "an administrator disables the account": lambda ada: ada.disable(by=SYSTEM),
}


@pytest.mark.parametrize("what", ALL)
async def test_an_administrators_action_forgets_every_browser(ada: User, what: str) -> None:
    await User.change({"_id": ada.id}, {"$set": {"totp": {"sealed": "", "added_at": clock.now()}}})
    ada = await reloaded(ada)
    session = await opened(ada, MINE)
    await session.end(Reason.SIGNED_OUT, by=SYSTEM)
    await ALL[what](ada)
    assert not await known(ada, MINE)


async def test_ending_sessions_forgets_browsers_without_a_session(ada: User) -> None:
    session = await opened(ada, THEIRS)
    await session.end(Reason.SIGNED_OUT, by=SYSTEM)
    assert await ada.end_sessions(Reason.ENDED_BY_ADMIN, by=SYSTEM) is None
    assert not await known(ada, THEIRS)


async def test_a_hash_upgrade_forgets_no_browser(ada: User) -> None:
    session = await opened(ada, MINE)
    await session.end(Reason.SIGNED_OUT, by=acting(ada))
    await ada.upgrade_hash("upgraded")
    assert await known(ada, MINE)


# ---- many ended sessions

MANY = 300


@pytest.fixture
async def busy(ada: User, db: Database) -> User:
    """Return a user with many ended sessions, in the browsers MINE and THEIRS."""
    mine, theirs = await opened(ada, MINE), await opened(ada, THEIRS, "192.0.2.8")
    rows = []
    for session in (mine, theirs):
        row = not_none(await db["sessions"].find_one({"_id": session.id}))
        row |= {"ended_at": clock.now(), "ended_reason": "signed_out"}
        rows += [row | {"_id": new_id(), "digest": f"{session.id} {i}"} for i in range(MANY)]
    await db["sessions"].insert_many(rows)
    return await reloaded(ada)


ENDED_SESSIONS_ARE_NOT_READ: dict[str, Callable[[User], Awaitable[Any]]] = {
    "sign in": lambda user: opened(user, MINE),
    "sign in, with the password changed": lambda user: opened(changed(user), MINE),
    "sign in, in an unknown browser": lambda user: opened(user, "another"),
    "known browser": lambda user: is_known_browser(user, browser="another"),
    "known browser, all forgotten": lambda user: is_known_browser(forgetful(user), browser=MINE),
    "known address": lambda user: is_known_browser(user, ip="198.51.100.1"),
    "active sessions": lambda user: Session.of_user(user.id),
    "end all": lambda user: mark_ended({"user.$id": user.id}, Reason.ENDED_BY_ADMIN, by=SYSTEM),
    "list of a user": lambda user: active_page(Wanted(user=user.id)),
    "list of an address": lambda user: active_page(Wanted(ip="192.0.2.8")),
}


def changed(user: User) -> User:
    user.password_hash = "another"
    return user


def forgetful(user: User) -> User:
    user.browsers_forgotten = ForgottenBrowsers(at=clock.now())
    return user


@pytest.mark.parametrize("what", ENDED_SESSIONS_ARE_NOT_READ)
async def test_ended_sessions_of_a_user_are_not_read(busy: User, queries: Any, what: str) -> None:
    asked = await queries(ENDED_SESSIONS_ARE_NOT_READ[what](busy))
    assert sum(each.get("docsExamined", 0) for each in asked) < 50
    assert sum(each.get("keysExamined", 0) for each in asked) < 60


@pytest.mark.parametrize("limit", [MANY, MANY - 1])
async def test_ending_a_session_forgets_a_limited_number(
    busy: User, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """With more sessions from the browser, all other browsers become unknown instead."""
    monkeypatch.setattr(sessions, "FORGOTTEN_AT_ONCE", limit + 1)
    mine = not_none(await Session.find_one({"ended_at": None, "browser": MINE}))
    lost = not_none(await Session.find_one({"ended_at": None, "browser": THEIRS}))
    assert await lost.end(Reason.ENDED_BY_USER, by=by(busy, mine))
    assert await known(busy, MINE)
    assert not await known(busy, THEIRS)
    left = await Session.find({"browser": THEIRS}).count()
    assert left == (0 if limit == MANY else MANY + 1)
