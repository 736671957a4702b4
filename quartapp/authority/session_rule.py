"""For whom a session speaks, or why it is over. The one rule, asked by pages and sockets alike."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.db import mongo
from quartapp.log import log
from quartapp.models.accounts.credential import credential_of
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import NOBODY
from quartapp.models.base.references import role_ref
from quartapp.models.factors.factor import factors_of, has_shown_one, waits_for_one
from quartapp.models.sessions.reason import Because, Reason
from quartapp.models.sessions.session import Session, mark_ended
from quartapp.policy import Permission

ANSWER_MS = 2000
NEVER = datetime.max.replace(tzinfo=UTC)
_KNOWN = {permission.value for permission in Permission}
# For thousands at once: an enumeration takes longer to be asked.
_REASONS: dict[Any, Reason] = {reason.value: reason for reason in Reason}
_BECAUSE: dict[Any, Because] = {because.value: because for because in Because}


@dataclass(frozen=True, slots=True)
class Principal:
    """A living session and what its user may do, as the database said in one answer.

    `withheld` are the roles that give nothing until a second factor is shown, and
    `withheld_permissions` what they would give besides.
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


@dataclass(frozen=True, slots=True)
class Ended:
    """A session that is over: why, by whom if anybody, and since when."""

    session_id: PydanticObjectId
    user_id: PydanticObjectId
    reason: Reason
    by: str | None
    at: datetime
    event: PydanticObjectId | None = None
    ender: PydanticObjectId | None = None
    because: Because | None = None

    @property
    def message(self) -> str:
        return self.told_to(self.user_id)

    def told_to(self, user_id: PydanticObjectId) -> str:
        """Why it is over, in a sentence for the person whose session it was."""
        return self.reason.message(self.by, own=self.ender == user_id, because=self.because)


Standing = Principal | Ended


async def by_digest(digest: str) -> Standing | None:
    """What the session of this token's digest stands for; None if there is none, or no longer."""
    found = await standings({"digest": digest})
    return found[0] if found else None


async def by_id(session_id: PydanticObjectId) -> Standing | None:
    found = await standings({"_id": session_id})
    return found[0] if found else None


def deleted(session_id: PydanticObjectId, user_id: PydanticObjectId) -> Ended:
    """A session whose document is gone: whoever deleted it has ended it."""
    return Ended(session_id, user_id, Reason.ENDED_BY_ADMIN, None, clock.now())


async def ended(
    changes: Mapping[PydanticObjectId, Mapping[str, Any]], names: dict[PydanticObjectId, str]
) -> list[Standing]:
    """What the updates that ended these sessions say. Final, so the sessions are not asked.

    Whoever ended them is called by the names given; those that are missing are looked up and added.
    """
    enders = {link.id for fields in changes.values() if (link := fields.get("ended_by"))}
    if unknown := list(enders - names.keys()):
        users = User.get_motor_collection()
        async for row in users.find({"_id": {"$in": unknown}}, {"username": 1}):
            names[row["_id"]] = row["username"]
    return [
        Ended(
            session_id=session_id,
            user_id=session_id,
            reason=_reason(fields),
            by=names.get(link.id) if (link := fields.get("ended_by")) else None,
            at=_aware(fields["ended_at"]),
            event=link.id if (link := fields.get("ended_event")) else None,
            ender=link.id if (link := fields.get("ended_by")) else None,
            because=_because(fields),
        )
        for session_id, fields in changes.items()
    ]


async def standings(match: Mapping[str, Any]) -> list[Standing]:
    """Judges every session that matches, in one query.

    What is found to be over and does not say so yet is ended in the database, and a role that a
    session has not acted with before is remembered there, before this returns: so whatever is
    taken away later, and by whatever path, is noticed.
    """
    now = clock.now()
    sessions = Session.get_motor_collection().with_options(read_concern=mongo.current())
    rows = await sessions.aggregate(_pipeline(match), maxTimeMS=ANSWER_MS).to_list(None)
    judged = [(row, _judge(row, now)) for row in rows]
    over: dict[tuple[Reason, Because | None], list[PydanticObjectId]] = {}
    for row, standing in judged:
        if isinstance(standing, Principal):
            await _remember(row)
        elif row.get("ended_at") is None:
            why = standing.reason, standing.because
            over.setdefault(why, []).append(standing.session_id)
    for (reason, because), ids in over.items():
        await mark_ended({"_id": {"$in": ids}}, reason, by=NOBODY, because=because)
    return [standing for _, standing in judged]


def _judge(row: Mapping[str, Any], now: datetime) -> Standing:
    """A session that nobody can make sense of is over; it must not hold up all the others."""
    try:
        return judge(row, now)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        log.exception("session_not_understood", session=str(row["_id"]))
        return deleted(row["_id"], row["_id"])


def judge(row: Mapping[str, Any], now: datetime) -> Standing:
    """The rule, on a session's document with its `holder`, the roles `held` and the `ender` beside.

    Pure: the database is not asked.
    """
    user = next(iter(row.get("holder", ())), None)
    reason = _why_over(row, user, now)
    if user is None or reason is not None:
        return Ended(
            session_id=row["_id"],
            user_id=row["user"].id,
            reason=reason or Reason.ACCOUNT_DISABLED,
            by=next((ender.get("username") for ender in row.get("ender", ())), None),
            at=_aware(row.get("ended_at") or now),
            event=row["ended_event"].id if row.get("ended_event") else None,
            ender=row["ended_by"].id if row.get("ended_by") else None,
            because=_because(row, user if row.get("ended_at") is None else None, now),
        )
    shown = has_shown_one(row, user)
    waiting = [role for role in row["held"] if waits_for_one(role, shown=shown)]
    permissions = _permissions([role for role in row["held"] if role not in waiting])
    seen, told = int(user.get("notices_read") or 0), int(user.get("notice_seq") or 0)
    return Principal(
        session_id=row["_id"],
        user_id=user["_id"],
        username=user["username"],
        roles=tuple(sorted(role["name"] for role in row["held"])),
        permissions=permissions,
        version=int(user.get("authz_version") or 0),
        changed_by=next((changer.get("username") for changer in row.get("changer", ())), None),
        cursor=told,
        unread=max(0, told - seen),
        seen_at=_aware(row["seen_at"]),
        confirmed_at=_aware(row["confirmed_at"]),
        seconds_left=(min(_deadline(row), _closing(user)) - now).total_seconds(),
        withheld=frozenset(role["name"] for role in waiting),
        withheld_permissions=_permissions(waiting) - permissions,
    )


def _why_over(
    row: Mapping[str, Any], user: Mapping[str, Any] | None, now: datetime
) -> Reason | None:
    if row.get("ended_at") is not None:
        return _reason(row)
    if user is None or _is_shut(user, now):
        return Reason.ACCOUNT_DISABLED
    if user.get("must_verify") and user.get("email_verified_at") is None:
        return Reason.EMAIL_UNVERIFIED
    if _deadline(row) <= now:
        return Reason.EXPIRED
    if row.get("credential") != credential_of(user):
        return Reason.PASSWORD_CHANGED
    if row.get("factor") is None and factors_of(user):
        return Reason.FACTOR_REQUIRED
    # A role that is gone from the collection comes back in no look-up, so it is not held either.
    held = {role["_id"] for role in row["held"]}
    lost = {link.id for link in row.get("roles", ())} - held
    if not lost:
        return None
    listed = {link.id for link in user.get("roles", ())}
    return Reason.ROLE_DELETED if lost <= listed else Reason.ROLE_REVOKED


def _is_shut(user: Mapping[str, Any], now: datetime) -> bool:
    """Disabled by those in charge, past its last day, or closed by its owner or to be deleted: see
    `User.is_open`."""
    return _was_shut(user) or _closing(user) <= now


def _was_shut(user: Mapping[str, Any]) -> bool:
    """By somebody, and not by the calendar alone."""
    return user.get("disabled_at") is not None or user.get("closed_at") is not None


def _reason(row: Mapping[str, Any]) -> Reason:
    # Ended by a hand that gave no reason, in a mongo shell for one: somebody in charge did it.
    stored = row.get("ended_reason")
    return _REASONS.get(stored, Reason.ENDED_BY_ADMIN)


def _because(
    row: Mapping[str, Any], user: Mapping[str, Any] | None = None, now: datetime = NEVER
) -> Because | None:
    """As it was written when the session ended; for one that ends only now, as its `user` is."""
    if user is not None:
        return Because.LAST_DAY if not _was_shut(user) and _closing(user) <= now else None
    return _BECAUSE.get(row.get("ended_because"))


def _deadline(row: Mapping[str, Any]) -> datetime:
    """When the session ends by itself, unless it is used."""
    idle = timedelta(seconds=row["idle_seconds"])
    return min(_aware(row["expires_at"]), _aware(row["seen_at"]) + idle)


def _closing(user: Mapping[str, Any]) -> datetime:
    """When the account closes because its last day is over; far away for one that has none."""
    moment = user.get("closes_at")
    return NEVER if moment is None else _aware(moment)


def _permissions(roles: Collection[Mapping[str, Any]]) -> frozenset[str]:
    """What the roles allow together. A word that is no permission here allows nothing."""
    return frozenset(p for role in roles for p in role.get("permissions", ())) & _KNOWN


async def _remember(row: Mapping[str, Any]) -> None:
    known = {link.id for link in row.get("roles", ())}
    fresh = [role_ref(role["_id"]) for role in row["held"] if role["_id"] not in known]
    if fresh:
        await Session.change(
            {"_id": row["_id"], "ended_at": None}, {"$addToSet": {"roles": {"$each": fresh}}}
        )


def _pipeline(match: Mapping[str, Any]) -> list[dict[str, Any]]:
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
    ]


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
