"""The session rule: whether a session is valid and what its user may do, or why it has ended.

Pages, sockets and the principal cache all use this one rule. It reads the session together with its
user and the roles of the user, so a change that another program makes in the database counts too.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from beanie import PydanticObjectId
from bson import DBRef

from quartapp import clock
from quartapp.db import mongo
from quartapp.log import log
from quartapp.models.accounts import role_ends, status
from quartapp.models.accounts.credential import credential_of
from quartapp.models.accounts.preferences import (
    stored_preference,
    stored_theme,
    stored_timezone,
)
from quartapp.models.accounts.user import User
from quartapp.models.authorization.permissions import (
    permissions_of,
    principal_version,
    role_version,
    stored,
    usable_roles,
)
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import role_ref
from quartapp.models.factors.factor import factors_of, has_shown_one
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.sessions import expiry
from quartapp.models.sessions.reason import EndDetail, Reason
from quartapp.models.sessions.session import Session, mark_ended
from quartapp.policy import Permission

QUERY_TIMEOUT_MS = 2000
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


async def state_by_digest(digest: str) -> PrincipalOrEnded | None:
    """Return the state of the session with this token digest, or None if there is no such session.

    Has the effects of `states_matching`, and raises the driver's errors.
    """
    found = await states_matching({"digest": digest})
    return found[0] if found else None


async def state_by_id(session_id: PydanticObjectId) -> PrincipalOrEnded | None:
    """Return the state of the session with this id, or None if there is no such session.

    Has the effects of `states_matching`, and raises the driver's errors.
    """
    found = await states_matching({"_id": session_id})
    return found[0] if found else None


def state_of_deleted(session_id: PydanticObjectId, user_id: PydanticObjectId) -> EndedSession:
    """Return the state of a session whose document was deleted: ended by an administrator, now.

    Neither the administrator nor an event is known.
    """
    return EndedSession(session_id, user_id, Reason.ENDED_BY_ADMIN, None, clock.now())


async def ended_sessions_from_updates(
    updates: Mapping[PydanticObjectId, Mapping[str, Any]],
    *,
    users: Mapping[PydanticObjectId, PydanticObjectId],
    names: dict[PydanticObjectId, str],
) -> list[EndedSession]:
    """Return the sessions that ended, built from the updates that ended them, without reading the
    sessions: a session that has ended stays ended.

    `updates` has the updated fields, and `users` the id of the user, by session id. `names` is a
    cache of usernames by user id: the names of the users who ended the sessions are added to it,
    with one query, if they are missing. Raises the driver's errors, and KeyError or ValueError for
    fields of a wrong form.
    """
    enders = {link.id for fields in updates.values() if (link := fields.get("ended_by"))}
    if unknown := list(enders - names.keys()):
        collection = User.get_motor_collection()
        async for row in collection.find({"_id": {"$in": unknown}}, {"username": 1}):
            names[row["_id"]] = row["username"]
    return [
        EndedSession(
            session_id=session_id,
            user_id=users[session_id],
            reason=_stored_reason(fields),
            by=names.get(link.id) if (link := fields.get("ended_by")) else None,
            at=clock.as_utc(fields["ended_at"]),
            event=link.id if (link := fields.get("ended_event")) else None,
            ender=link.id if (link := fields.get("ended_by")) else None,
            because=_stored_detail(fields),
        )
        for session_id, fields in updates.items()
    ]


async def states_matching(match: Mapping[str, Any]) -> list[PrincipalOrEnded]:
    """Return the states of all sessions that match the filter, read with one query, or with three
    if one of their users has a link to a role that does not exist.

    Before it returns it writes two things. A session that is over by the rule, but not marked as
    ended, is marked so with the reason; no user is named as the one who ended it, unless a role was
    deleted. A role that the user holds and the session does not list yet is added to the session:
    the session ends when the user loses that role, also if another program takes it away.

    A malformed document is logged as `session_not_understood`, and its session counts as deleted.
    Raises the driver's errors; the query is given up after QUERY_TIMEOUT_MS.
    """
    now = clock.now()
    sessions = Session.get_motor_collection().with_options(
        read_concern=mongo.current_read_concern()
    )
    rows = await sessions.aggregate(_pipeline(match), maxTimeMS=QUERY_TIMEOUT_MS).to_list(None)
    await _add_role_deletions(rows)
    evaluated = [(row, _state_or_deleted(row, now)) for row in rows]
    over: dict[tuple[Reason, EndDetail | None], list[PydanticObjectId]] = {}
    deleted: dict[PydanticObjectId, tuple[RoleDeletion, list[PydanticObjectId]]] = {}
    for row, state in evaluated:
        if isinstance(state, Principal):
            await _record_new_roles(row, state)
        elif (deletion := row.get("deletion")) and state.reason is Reason.ROLE_DELETED:
            deleted.setdefault(deletion.id, (deletion, []))[1].append(state.session_id)
        elif row.get("ended_at") is None:
            why = state.reason, state.because
            over.setdefault(why, []).append(state.session_id)
    for (reason, because), ids in over.items():
        await mark_ended({"_id": {"$in": ids}}, reason, by=SYSTEM, because=because)
    for deletion, ids in deleted.values():
        match = {"_id": {"$in": ids}, "ended_at": None}
        await Session.change_all(match, {"$set": deletion.end_fields})
    return [state for _, state in evaluated]


async def _add_role_deletions(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row of a session that is not marked as ended, in `deletion`, the first deletion
    of a role to which the session or its user has a link; and in `deleter`, who deleted it.

    Makes no query if all of these roles exist.
    """
    missing = {row["_id"]: _missing_roles(row) for row in rows if row.get("ended_at") is None}
    if not any(missing.values()):
        return
    deletions = await RoleDeletion.of_roles(set().union(*missing.values()))
    users = User.get_motor_collection()
    by = [deletion.by_id for deletion in deletions]
    deleters = await users.find({"_id": {"$in": by}}, {"username": 1}).to_list(None)
    for row in rows:
        found = [each for each in deletions if each.id in missing.get(row["_id"], ())]
        if found:
            row["deletion"] = first = min(found, key=lambda deletion: deletion.at)
            row["deleter"] = [user for user in deleters if user["_id"] == first.by_id]


def _missing_roles(row: Mapping[str, Any]) -> set[PydanticObjectId]:
    """Return the ids of the roles that the session or its user links, and that were not found."""
    found = {role["_id"] for role in row.get("held", ())}
    documents = [row, *row.get("holder", ())]
    lists = [document.get("roles") for document in documents]
    links = [link for roles in lists if isinstance(roles, list) for link in roles]
    return {link.id for link in links if isinstance(link, DBRef)} - found


def _state_or_deleted(row: Mapping[str, Any], now: datetime) -> PrincipalOrEnded:
    """Return the state by the rule, or that of a deleted session if the document is malformed.

    A malformed document, which another program has written, is logged as `session_not_understood`,
    so that it does not prevent the evaluation of the other sessions.
    """
    try:
        return state_of(row, now)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        log.exception("session_not_understood", session=str(row["_id"]))
        return state_of_deleted(row["_id"], getattr(row.get("user"), "id", row["_id"]))


def state_of(row: Mapping[str, Any], now: datetime) -> PrincipalOrEnded:
    """Return the state of the session in `row`, by the rule. Reads and writes nothing.

    `row` is a session's document as `_pipeline` returns it: with the documents of the user in
    `holder`, of the user's roles in `held`, of the user who ended it in `ender`, of the user who
    last changed the user's roles in `changer`, and of those who last changed each role in
    `editors`. `_add_role_deletions` may have added `deletion` and `deleter`. Raises KeyError,
    TypeError and similar errors if a field is missing or has a wrong type.
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
        return _stored_reason(row)
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


def _stored_reason(row: Mapping[str, Any]) -> Reason:
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
        return _stored_detail(row)
    if reason is Reason.ACCOUNT_DISABLED and user and _has_only_expired(user, now):
        return EndDetail.EXPIRED
    if reason is Reason.ROLE_REVOKED:
        roles = {link.id for link in row.get("roles", ())} | {role["_id"] for role in row["held"]}
        return EndDetail.ROLE_EXPIRED if roles & expired else None
    return None


def _stored_detail(row: Mapping[str, Any]) -> EndDetail | None:
    """Return the stored detail of an ended session, or None."""
    return _DETAILS.get(row.get("ended_because"))


def _expires_at(row: Mapping[str, Any]) -> datetime:
    """Return the time at which the session expires if it is not used."""
    return expiry.deadline(row["expires_at"], row["seen_at"], row["idle_seconds"])


def _valid_until(row: Mapping[str, Any], user: Mapping[str, Any], now: datetime) -> datetime:
    """Return the time at which the session, the account or one of the roles expires, whichever is
    first."""
    return min(_expires_at(row), status.expires_at(user), role_ends.next_end(user, now))


async def _record_new_roles(row: Mapping[str, Any], state: Principal) -> None:
    """Add the roles that the user holds and the session does not list to the session.

    Writes nothing if there are none, or if the session has ended.
    """
    known = {link.id for link in row.get("roles", ())}
    fresh = [role_ref(role.id) for role in state.held if role.id not in known]
    if fresh:
        await Session.change(
            {"_id": row["_id"], "ended_at": None}, {"$addToSet": {"roles": {"$each": fresh}}}
        )


def _pipeline(match: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the aggregation that reads matching sessions as `state_of` needs them."""
    users, username = User.Settings.name, {"$project": {"username": 1}}
    return [
        {"$match": dict(match)},
        {
            "$lookup": {
                "from": users,
                "localField": "user.$id",
                "foreignField": "_id",
                "as": "holder",
            }
        },
        {
            "$lookup": {
                "from": "roles",
                "localField": "holder.roles.$id",
                "foreignField": "_id",
                "as": "held",
            }
        },
        {
            "$lookup": {
                "from": users,
                "localField": "ended_by.$id",
                "foreignField": "_id",
                "pipeline": [username],
                "as": "ender",
            }
        },
        {
            "$lookup": {
                "from": users,
                "localField": "holder.authz_by.$id",
                "foreignField": "_id",
                "pipeline": [username],
                "as": "changer",
            }
        },
        {
            "$lookup": {
                "from": users,
                "localField": "held.changed_by.$id",
                "foreignField": "_id",
                "pipeline": [username],
                "as": "editors",
            }
        },
    ]
