"""The session rule: which user a session authenticates, or why it has ended."""

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
    """Return an active session as a raw document."""
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
    state = state_of(row, NOW)
    return state.reason if isinstance(state, EndedSession) else None


def test_an_active_session_authenticates_its_user() -> None:
    held = [role(MEMBER, "member", "posts.write"), role(EDITOR, "editor", "posts.moderate")]
    found = state_of(row(held=held, changer=[{"username": "root"}]), NOW)
    assert isinstance(found, Principal)
    assert (found.session_id, found.user_id, found.username) == (SESSION, USER, "ada")
    assert found.roles == ("editor", "member")
    assert found.permissions == {"posts.write", "posts.moderate"}
    assert (found.version, found.changed_by) == (3, "root")
    assert (found.cursor, found.unread) == (7, 2)


@pytest.mark.parametrize("word", ["posts.destroy", "", "POSTS.WRITE", "*", "posts.*"])
def test_an_unknown_permission_is_ignored(word: str) -> None:
    found = state_of(row(held=[role(MEMBER, "member", word, "posts.write")]), NOW)
    assert isinstance(found, Principal)
    assert found.permissions == {"posts.write"}


def test_a_role_without_permissions_grants_none() -> None:
    found = state_of(row(held=[{"_id": MEMBER, "name": "member"}]), NOW)
    assert isinstance(found, Principal)
    assert found.permissions == frozenset()


@pytest.mark.parametrize(
    ("left", "over"), [(TICK, None), (timedelta(0), Reason.EXPIRED), (-TICK, Reason.EXPIRED)]
)
def test_a_session_ends_exactly_when_it_expires(left: timedelta, over: Reason | None) -> None:
    assert reason(row(expires_at=NOW + left)) is over


@pytest.mark.parametrize(
    ("left", "over"), [(TICK, None), (timedelta(0), Reason.EXPIRED), (-TICK, Reason.EXPIRED)]
)
def test_a_session_ends_exactly_at_its_idle_limit(left: timedelta, over: Reason | None) -> None:
    assert reason(row(seen_at=NOW - timedelta(seconds=1800) + left)) is over


def test_times_without_a_time_zone_are_utc() -> None:
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
def test_an_account_closes_exactly_at_the_end_of_its_expiry_date(
    left: timedelta, over: Reason | None
) -> None:
    assert reason(row(holder(closes_at=NOW + left))) is over
    assert reason(row(holder(closes_at=(NOW + left).replace(tzinfo=None)))) is over


@pytest.mark.parametrize(("seconds", "left"), [(60, 60.0), (86_400, 1500.0)])
def test_a_session_is_valid_until_it_or_the_account_expires(seconds: int, left: float) -> None:
    found = state_of(row(holder(closes_at=NOW + timedelta(seconds=seconds))), NOW)
    assert isinstance(found, Principal)
    assert found.seconds_left == left


def test_a_deleted_account_ends_its_sessions() -> None:
    found = state_of(row(holder=[], held=[]), NOW)
    assert isinstance(found, EndedSession)
    assert (found.reason, found.user_id) == (Reason.ACCOUNT_DISABLED, USER)


def test_a_password_change_ends_sessions_of_the_old_password() -> None:
    assert reason(row(holder(password_hash="other"))) is Reason.PASSWORD_CHANGED


def test_a_session_without_a_credential_has_ended() -> None:
    assert reason(row(credential=None)) is Reason.PASSWORD_CHANGED


def test_a_session_with_a_removed_role_has_reason_role_revoked() -> None:
    taken = row(holder(roles=[]), held=[])
    assert reason(taken) is Reason.ROLE_REVOKED


def test_a_session_with_a_missing_role_has_reason_role_deleted() -> None:
    assert reason(row(held=[])) is Reason.ROLE_DELETED


def test_a_revoked_role_takes_precedence_over_a_deleted_one() -> None:
    both = row(holder(roles=links(EDITOR)), roles=links(MEMBER, EDITOR), held=[])
    assert reason(both) is Reason.ROLE_REVOKED


def test_a_newly_granted_role_ends_no_session() -> None:
    more = [role(MEMBER, "member"), role(EDITOR, "editor", "posts.moderate")]
    found = state_of(row(holder(roles=links(MEMBER, EDITOR)), held=more), NOW)
    assert isinstance(found, Principal)
    assert found.roles == ("editor", "member")


def test_a_session_without_used_roles_needs_none() -> None:
    assert reason(row(holder(roles=[]), roles=[], held=[])) is None


@pytest.mark.parametrize("why", Reason)
def test_an_ended_session_keeps_its_reason_and_time(why: Reason) -> None:
    at = NOW - timedelta(days=1)
    # The other fields give another reason. The stored one takes precedence.
    spent = row(
        holder(disabled_at=NOW),
        ended_at=at,
        ended_reason=why.value,
        ender=[{"username": "root"}],
    )
    found = state_of(spent, NOW)
    assert found == EndedSession(SESSION, USER, why, "root", at)


@pytest.mark.parametrize("stored", [None, "", "because", 7])
def test_an_end_without_a_reason_counts_as_ended_by_an_administrator(stored: object) -> None:
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
def test_the_most_important_of_several_reasons_is_given(
    changes: dict[str, Any], over: Reason
) -> None:
    assert reason(row(holder(**changes), held=[])) is over
    expired = row(holder(**changes), held=[], expires_at=NOW)
    assert reason(expired) is (
        Reason.ACCOUNT_DISABLED if "disabled_at" in changes else Reason.EXPIRED
    )


def test_the_number_of_unread_notifications_is_never_negative() -> None:
    found = state_of(row(holder(notice_seq=2, notices_read=5)), NOW)
    assert isinstance(found, Principal)
    assert found.unread == 0
