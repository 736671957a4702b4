"""The session rule: whether a session is valid and what its user may do, or why it has ended.

Pages, sockets and the principal cache all use this one rule. It reads and writes nothing: it judges
the documents that `session_states` has read, those of the session, its user and the user's roles.
So a change that another program makes in the database counts too.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.models.accounts import role_ends, status
from quartapp.models.accounts.credential import credential_of
from quartapp.models.accounts.preferences import (
    stored_preference,
    stored_theme,
    stored_timezone,
)
from quartapp.models.authorization.permissions import (
    permissions_of,
    principal_version,
    role_version,
    stored,
    usable_roles,
)
from quartapp.models.factors.factor import factors_of, has_shown_one
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.sessions import expiry
from quartapp.models.sessions.reason import EndDetail, Reason
from quartapp.policy import Permission

_KNOWN_PERMISSIONS = {permission.value for permission in Permission}
_NEVER = datetime.min.replace(tzinfo=UTC)
# A dictionary is faster than calling the enumeration, and a role may end thousands of sessions.
_REASONS: dict[Any, Reason] = {reason.value: reason for reason in Reason}
_DETAILS: dict[Any, EndDetail] = {because.value: because for because in EndDetail}


class HeldRole(NamedTuple):
    """A role of a principal. `content` is a hash of what the role allows, which differs between
    processes."""

    id: PydanticObjectId
    version: int
    content: int

    @classmethod
    def of(cls, role: Mapping[str, Any]) -> "HeldRole":
        """Return it for a stored role."""
        content = role["name"], bool(role.get("requires_factor")), frozenset(stored(role))
        return cls(role["_id"], role_version(role), hash(content))


@dataclass(frozen=True, slots=True)
class Principal:
    """A valid session, its user and the user's permissions, as read in one query.

    `version` is that of the user and of all held roles together (`principal_version`), and
    `changed_by` the name of the user who made the last change of either. `cursor` is the number of
    the user's newest notification, and `unread` how many they have not read. `confirmed_at` is the
    last time they entered their password or second factor. `seconds_left` is the time until the
    session, the account or one of the roles expires, if the session is not used. `withheld` has the
    names of the roles that are without effect until the user has used a second factor, and
    `withheld_permissions` the permissions that only these roles would give. `language`, `timezone`
    and `theme` are the user's preferences, None if they leave the choice to the browser.
    """

    session_id: PydanticObjectId
    user_id: PydanticObjectId
    username: str
    roles: tuple[str, ...]
    permissions: frozenset[str]
    version: int
    changed_by: str | None
    cursor: int
    unread: int
    seen_at: datetime
    confirmed_at: datetime
    seconds_left: float = field(compare=False)
    withheld: frozenset[str] = frozenset()
    withheld_permissions: frozenset[str] = frozenset()
    held: tuple[HeldRole, ...] = ()
    language: str | None = None
    timezone: str | None = None
    theme: str | None = None


@dataclass(frozen=True, slots=True)
class EndedSession:
    """A session that has ended.

    `by` is the name of the user who ended it and `ender` their id; both are None if no user did.
    `event` is the id of the audit event. `because` says more about the reason.
    """

    session_id: PydanticObjectId
    user_id: PydanticObjectId
    reason: Reason
    by: str | None
    at: datetime
    event: PydanticObjectId | None = None
    ender: PydanticObjectId | None = None
    because: EndDetail | None = None

    @property
    def message(self) -> str:
        """The reason as a sentence for the session's user; "You ..." if they ended it."""
        return self.reason.message(self.by, own=self.ender == self.user_id, because=self.because)


PrincipalOrEnded = Principal | EndedSession


def state_of_deleted(session_id: PydanticObjectId, user_id: PydanticObjectId) -> EndedSession:
    """Return the state of a session whose document was deleted: ended by an administrator, now.

    Neither the administrator nor an event is known.
    """
    return EndedSession(session_id, user_id, Reason.ENDED_BY_ADMIN, None, clock.now())


def state_of(row: Mapping[str, Any], now: datetime) -> PrincipalOrEnded:
    """Return the state of the session in `row`, by the rule.

    `row` is a session's document as `session_states` reads it: with the documents of the user in
    `holder`, of the user's roles in `held`, of the user who ended it in `ender`, of the user who
    last changed the user's roles in `changer`, and of those who last changed each role in
    `editors`, and perhaps with the first `deletion` of a role that it or its user links and its
    `deleter`. Raises KeyError, TypeError and similar errors if a field is missing or has a wrong
    type.
    """
    user = next(iter(row.get("holder", ())), None)
    expired = role_ends.expired_roles(user, now) if user else set()
    reason = _end_reason(row, user, expired, now)
    deletion: RoleDeletion | None = row.get("deletion")
    if deletion and reason is Reason.ROLE_DELETED:
        # As it will be when it is marked as ended.
        row = {**row, **deletion.end_fields, "ender": row["deleter"]}
    if user is None or reason is not None:
        return EndedSession(
            session_id=row["_id"],
            user_id=row["user"].id,
            reason=reason or Reason.ACCOUNT_DISABLED,
            by=next((ender.get("username") for ender in row.get("ender", ())), None),
            at=clock.as_utc(row.get("ended_at") or now),
            event=row["ended_event"].id if row.get("ended_event") else None,
            ender=row["ended_by"].id if row.get("ended_by") else None,
            because=_detail(row, user, reason, expired, now),
        )
    shown = has_shown_one(row, user)
    held = row["held"]
    giving = usable_roles(held, shown=shown)
    waiting = [role for role in held if role not in giving]
    permissions = permissions_of(giving) & _KNOWN_PERMISSIONS
    read, newest = int(user.get("notices_read") or 0), int(user.get("notice_seq") or 0)
    early = sum(read < seq <= newest for seq in user.get("notices_read_early") or ())
    return Principal(
        session_id=row["_id"],
        user_id=user["_id"],
        username=user["username"],
        roles=tuple(sorted(role["name"] for role in held)),
        permissions=permissions,
        version=principal_version(user, held),
        changed_by=_changed_by(row, user, held),
        cursor=newest,
        unread=max(0, newest - read - early),
        seen_at=clock.as_utc(row["seen_at"]),
        confirmed_at=clock.as_utc(row["confirmed_at"]),
        seconds_left=(_valid_until(row, user, now) - now).total_seconds(),
        withheld=frozenset(role["name"] for role in waiting),
        withheld_permissions=(permissions_of(waiting) & _KNOWN_PERMISSIONS) - permissions,
        held=tuple(sorted(map(HeldRole.of, held))),
        language=stored_preference(user, "language"),
        timezone=stored_timezone(user),
        theme=stored_theme(user),
    )


def _changed_by(
    row: Mapping[str, Any], user: Mapping[str, Any], held: Sequence[Mapping[str, Any]]
) -> str | None:
    """Return the name of the user who made the last change of the user's roles or of one of these
    roles; None if no user did."""
    latest = max(held, key=_changed_at, default=None)
    if latest is None or _changed_at(latest) <= _time_of(user, "authz_at"):
        return next((changer.get("username") for changer in row.get("changer", ())), None)
    editor = latest["changed_by"].id if latest.get("changed_by") else None
    return next((e.get("username") for e in row.get("editors", ()) if e["_id"] == editor), None)


def _changed_at(role: Mapping[str, Any]) -> datetime:
    return _time_of(role, "changed_at")


def _time_of(document: Mapping[str, Any], field: str) -> datetime:
    """Return the time in this field, or _NEVER if there is none."""
    at = document.get(field)
    return clock.as_utc(at) if isinstance(at, datetime) else _NEVER


def _end_reason(
    row: Mapping[str, Any],
    user: Mapping[str, Any] | None,
    expired: Set[PydanticObjectId],
    now: datetime,
) -> Reason | None:
    """Return why the session has ended, or None if it is valid.

    The first reason that applies counts: the stored one; an account that does not exist or is not
    active; an address that must be verified first; the expiry; a changed password; a second factor
    that the session has not shown; a role of the user whose grant has `expired`; and a role that
    the session has used and the user has lost, or that was deleted.
    """
    if row.get("ended_at") is not None:
        return stored_reason(row)
    if user is None or not status.is_active(user, now):
        return Reason.ACCOUNT_DISABLED
    if user.get("must_verify") and user.get("email_verified_at") is None:
        return Reason.EMAIL_UNVERIFIED
    if _expires_at(row) <= now:
        return Reason.EXPIRED
    if row.get("credential") != credential_of(user):
        return Reason.PASSWORD_CHANGED
    if row.get("factor") is None and factors_of(user):
        return Reason.FACTOR_REQUIRED
    if row.get("deletion"):
        # The user held the role until it was deleted, and still has a link to it. A sign-in
        # removes the link before it opens a session: see models.roles.deletion.
        return Reason.ROLE_DELETED
    # A role that another program has deleted is not found by the $lookup, so it is not in `held`.
    existing = {role["_id"] for role in row["held"]}
    if existing & expired:
        # Also of a session that has never used the role, as when the expiry is recorded. A sign-in
        # records it before it opens a session: see models.sessions.opening.
        return Reason.ROLE_REVOKED
    lost = {link.id for link in row.get("roles", ())} - existing
    if not lost:
        return None
    listed = {link.id for link in user.get("roles", ())} - expired
    return Reason.ROLE_DELETED if lost <= listed else Reason.ROLE_REVOKED


def _has_only_expired(user: Mapping[str, Any], now: datetime) -> bool:
    """Return whether the account is inactive because it expired, and for no other reason."""
    return status.has_expired(user, now) and status.is_active({**user, "closes_at": None}, now)


def stored_reason(row: Mapping[str, Any]) -> Reason:
    """Return the stored reason of an ended session. ENDED_BY_ADMIN without a known one, as after
    a change in a mongo shell."""
    # A session may be ended without a reason, as in a mongo shell. Only an administrator can.
    stored = row.get("ended_reason")
    return _REASONS.get(stored, Reason.ENDED_BY_ADMIN)


def _detail(
    row: Mapping[str, Any],
    user: Mapping[str, Any] | None,
    reason: Reason | None,
    expired: Set[PydanticObjectId],
    now: datetime,
) -> EndDetail | None:
    """Return the detail for the session's end reason, or None.

    For a session that was marked as ended it is the stored one. For one that ends by the rule now,
    it is EXPIRED if the account has only expired, and ROLE_EXPIRED if a role of the user has, or
    one that the session lists.
    """
    if row.get("ended_at") is not None:
        return stored_detail(row)
    if reason is Reason.ACCOUNT_DISABLED and user and _has_only_expired(user, now):
        return EndDetail.EXPIRED
    if reason is Reason.ROLE_REVOKED:
        roles = {link.id for link in row.get("roles", ())} | {role["_id"] for role in row["held"]}
        return EndDetail.ROLE_EXPIRED if roles & expired else None
    return None


def stored_detail(row: Mapping[str, Any]) -> EndDetail | None:
    """Return the stored detail of an ended session, or None."""
    return _DETAILS.get(row.get("ended_because"))


def _expires_at(row: Mapping[str, Any]) -> datetime:
    """Return the time at which the session expires if it is not used."""
    return expiry.deadline(row["expires_at"], row["seen_at"], row["idle_seconds"])


def _valid_until(row: Mapping[str, Any], user: Mapping[str, Any], now: datetime) -> datetime:
    """Return the time at which the session, the account or one of the roles expires, whichever is
    first."""
    return min(_expires_at(row), status.expires_at(user), role_ends.next_end(user, now))
