"""The rule that says for whom a session speaks, on rows made by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from beanie import PydanticObjectId
from bson import DBRef

from quartapp.authority.session_rule import EndedSession, Principal, state_of
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.sessions.reason import Reason

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TICK = timedelta(milliseconds=1)
SESSION, USER, ROOT, EDITOR, MEMBER = (PydanticObjectId() for _ in range(5))


def role(role_id: PydanticObjectId, name: str, *permissions: str) -> dict[str, Any]:
    return {"_id": role_id, "name": name, "permissions": list(permissions)}


def links(*ids: PydanticObjectId) -> list[DBRef]:
    return [DBRef("roles", role_id) for role_id in ids]


def holder(**changes: Any) -> dict[str, Any]:
    user = {
        "_id": USER,
        "username": "ada",
        "password_hash": "hash",
        "roles": links(MEMBER),
        "authz_version": 3,
        "disabled_at": None,
        "notice_seq": 7,
        "notices_read": 5,
    }
    return user | changes


def row(user: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A session in its prime, as the database answers with it."""
    session = {
        "_id": SESSION,
        "user": DBRef("users", USER),
        "seen_at": NOW - timedelta(minutes=5),
        "confirmed_at": NOW - timedelta(minutes=5),
        "expires_at": NOW + timedelta(hours=1),
        "idle_seconds": 1800,
        "credential": fingerprint("hash"),
        "roles": links(MEMBER),
        "ended_at": None,
        "holder": [user or holder()],
        "held": [role(MEMBER, "member", "posts.write")],
        "ender": [],
        "changer": [],
    }
    return session | changes


def reason(row: dict[str, Any]) -> Reason | None:
    standing = state_of(row, NOW)
    return standing.reason if isinstance(standing, EndedSession) else None


def test_a_living_session_speaks_for_its_user() -> None:
    held = [role(MEMBER, "member", "posts.write"), role(EDITOR, "editor", "posts.moderate")]
    found = state_of(row(held=held, changer=[{"username": "root"}]), NOW)
    assert isinstance(found, Principal)
    assert (found.session_id, found.user_id, found.username) == (SESSION, USER, "ada")
    assert found.roles == ("editor", "member")
    assert found.permissions == {"posts.write", "posts.moderate"}
    assert (found.version, found.changed_by) == (3, "root")
    assert (found.cursor, found.unread) == (7, 2)


@pytest.mark.parametrize("word", ["posts.destroy", "", "POSTS.WRITE", "*", "posts.*"])
def test_an_unknown_permission_allows_nothing(word: str) -> None:
    found = state_of(row(held=[role(MEMBER, "member", word, "posts.write")]), NOW)
    assert isinstance(found, Principal)
    assert found.permissions == {"posts.write"}


def test_a_role_without_permissions_allows_nothing() -> None:
    found = state_of(row(held=[{"_id": MEMBER, "name": "member"}]), NOW)
    assert isinstance(found, Principal)
    assert found.permissions == frozenset()


@pytest.mark.parametrize(
    ("left", "over"), [(TICK, None), (timedelta(0), Reason.EXPIRED), (-TICK, Reason.EXPIRED)]
)
def test_a_session_is_over_at_the_very_moment_it_expires(
    left: timedelta, over: Reason | None
) -> None:
    assert reason(row(expires_at=NOW + left)) is over


@pytest.mark.parametrize(
    ("left", "over"), [(TICK, None), (timedelta(0), Reason.EXPIRED), (-TICK, Reason.EXPIRED)]
)
def test_a_session_is_over_at_the_very_moment_it_has_been_idle_too_long(
    left: timedelta, over: Reason | None
) -> None:
    assert reason(row(seen_at=NOW - timedelta(seconds=1800) + left)) is over


def test_times_without_a_zone_are_utc() -> None:
    naive = NOW.replace(tzinfo=None)
    assert reason(row(seen_at=naive, expires_at=naive + TICK)) is None
    assert reason(row(seen_at=naive, expires_at=naive)) is Reason.EXPIRED


def test_a_disabled_account_ends_its_sessions() -> None:
    assert reason(row(holder(disabled_at=NOW))) is Reason.ACCOUNT_DISABLED


@pytest.mark.parametrize(
    ("left", "over"),
    [
        (TICK, None),
        (timedelta(0), Reason.ACCOUNT_DISABLED),
        (-TICK, Reason.ACCOUNT_DISABLED),
    ],
)
def test_an_account_is_closed_at_the_very_moment_its_last_day_is_over(
    left: timedelta, over: Reason | None
) -> None:
    assert reason(row(holder(closes_at=NOW + left))) is over
    assert reason(row(holder(closes_at=(NOW + left).replace(tzinfo=None)))) is over


@pytest.mark.parametrize(("seconds", "left"), [(60, 60.0), (86_400, 1500.0)])
def test_a_session_is_good_until_it_expires_or_the_account_closes(
    seconds: int, left: float
) -> None:
    found = state_of(row(holder(closes_at=NOW + timedelta(seconds=seconds))), NOW)
    assert isinstance(found, Principal)
    assert found.seconds_left == left


def test_an_account_that_is_gone_ends_its_sessions() -> None:
    found = state_of(row(holder=[], held=[]), NOW)
    assert isinstance(found, EndedSession)
    assert (found.reason, found.user_id) == (Reason.ACCOUNT_DISABLED, USER)


def test_another_password_ends_the_sessions_that_were_opened_under_the_old_one() -> None:
    assert reason(row(holder(password_hash="other"))) is Reason.PASSWORD_CHANGED


def test_a_session_without_a_credential_was_opened_under_no_password_that_holds() -> None:
    assert reason(row(credential=None)) is Reason.PASSWORD_CHANGED


def test_a_role_that_the_user_holds_no_longer_was_revoked() -> None:
    taken = row(holder(roles=[]), held=[])
    assert reason(taken) is Reason.ROLE_REVOKED


def test_a_role_that_the_user_still_lists_but_that_is_gone_was_deleted() -> None:
    assert reason(row(held=[])) is Reason.ROLE_DELETED


def test_of_a_revoked_and_a_deleted_role_the_revoked_one_is_the_reason() -> None:
    both = row(holder(roles=links(EDITOR)), roles=links(MEMBER, EDITOR), held=[])
    assert reason(both) is Reason.ROLE_REVOKED


def test_a_role_given_since_ends_nothing() -> None:
    more = [role(MEMBER, "member"), role(EDITOR, "editor", "posts.moderate")]
    found = state_of(row(holder(roles=links(MEMBER, EDITOR)), held=more), NOW)
    assert isinstance(found, Principal)
    assert found.roles == ("editor", "member")


def test_a_session_that_has_acted_with_no_role_needs_none() -> None:
    assert reason(row(holder(roles=[]), roles=[], held=[])) is None


@pytest.mark.parametrize("why", Reason)
def test_an_ended_session_keeps_its_reason_and_its_moment(why: Reason) -> None:
    at = NOW - timedelta(days=1)
    # The rest speaks for another reason; what was written down first has the word.
    spent = row(
        holder(disabled_at=NOW),
        ended_at=at,
        ended_reason=why.value,
        ender=[{"username": "root"}],
    )
    found = state_of(spent, NOW)
    assert found == EndedSession(SESSION, USER, why, "root", at)


@pytest.mark.parametrize("stored", [None, "", "because", 7])
def test_an_end_without_a_reason_was_somebody_in_charge(stored: object) -> None:
    found = state_of(row(ended_at=NOW, ended_reason=stored), NOW)
    assert isinstance(found, EndedSession)
    assert (found.reason, found.by) == (Reason.ENDED_BY_ADMIN, None)
    assert found.message == "An administrator ended your session."


@pytest.mark.parametrize(
    ("changes", "over"),
    [
        ({"disabled_at": NOW, "password_hash": "other", "roles": []}, Reason.ACCOUNT_DISABLED),
        ({"password_hash": "other", "roles": []}, Reason.PASSWORD_CHANGED),
    ],
)
def test_of_several_reasons_the_weightiest_is_told(changes: dict[str, Any], over: Reason) -> None:
    assert reason(row(holder(**changes), held=[])) is over
    expired = row(holder(**changes), held=[], expires_at=NOW)
    assert reason(expired) is (
        Reason.ACCOUNT_DISABLED if "disabled_at" in changes else Reason.EXPIRED
    )


def test_more_notices_read_than_told_are_none_unread() -> None:
    found = state_of(row(holder(notice_seq=2, notices_read=5)), NOW)
    assert isinstance(found, Principal)
    assert found.unread == 0
