"""Setting up second factors and taking them away: the same for every kind.

`models.factors.factor` says in which field of the user each kind is stored.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from quartapp import clock
from quartapp.activities import FACTOR_ADDED, FACTOR_REMOVED, FACTORS_RESET
from quartapp.db.mongo import Tx
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import inform, record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import documents
from quartapp.models.base.references import PASSKEYS, DomainError, ref, user_ref
from quartapp.models.base.tokens import new_token
from quartapp.models.factors import recovery_codes
from quartapp.models.factors.factor import KEPT, NAMES, Factor
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session, count_active, mark_ended

Also = Callable[[Tx], Awaitable[object]]


class HasFactor(DomainError):
    """It was set up meanwhile."""

    def __init__(self) -> None:
        super().__init__("This is already set up. To set it up again, remove it first.")


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What came of setting up a factor. With the first one there are recovery codes, to be shown
    once, and a new token for the session that it was set up in."""

    event: Event
    codes: list[str] = field(default_factory=list, repr=False)
    token: str | None = field(default=None, repr=False)


async def add(
    user: User,
    kind: Factor,
    unless: Mapping[str, Any],
    change: Mapping[str, Any],
    *,
    by: Actor,
    name: str | None = None,
    also: Also | None = None,
) -> Enrolled:
    """Makes the change to the user's document, if it still is as said, and what is to be written
    `also` and may refuse it. Of a kind that one can have several of, each has a `name`. Raises
    HasFactor, and Unverified for an account whose address must be verified first.

    With the first factor, the session that it is set up in counts as having shown it, and those
    that have not are over: a password alone opens none any more.
    """
    token, digest = new_token()

    async def work(tx: Tx) -> Enrolled:
        await user.require_verified(tx)
        before = await User.get(user.id, session=tx)
        first = before is not None and not before.factors
        codes = recovery_codes.make() if first else []
        kept = {"recovery_codes": [recovery_codes.digest(user, code) for code in codes]}
        if not await _write(user, unless, change, kept if first else {}, by=by, tx=tx):
            raise HasFactor
        if also:
            await also(tx)
        event = Event.of(FACTOR_ADDED, by=by, subject=user.id, **_details(kind, name))
        await inform(FACTOR_ADDED, user, by=by, tx=tx, factor=words(kind, name))
        if first:
            await _show(kind, digest, event, by=by, tx=tx)
        await event.insert(session=tx)
        return Enrolled(event, codes, token if first else None)

    return await authorized_transaction(by, work, managing=user.id)


async def remove(
    user: User,
    kind: Factor,
    condition: Mapping[str, Any],
    change: Mapping[str, Any],
    *,
    by: Actor,
    name: str | None = None,
    also: Also | None = None,
) -> Event | None:
    """Makes the change to the user's document, if it still is as said; else None.

    Recovery codes go with the last factor.
    """

    async def work(tx: Tx) -> Event | None:
        if not await _write(user, condition, change, {}, by=by, tx=tx):
            return None
        if also:
            await also(tx)
        after = await User.get(user.id, session=tx)
        if after is not None and not after.factors:
            await User.change({"_id": user.id}, {"$set": {"recovery_codes": []}}, tx=tx)
        details, named = _details(kind, name), {"factor": words(kind, name)}
        return await record(FACTOR_REMOVED, user, by=by, tx=tx, words=named, **details)

    return await authorized_transaction(by, work, managing=user.id)


async def reset(user: User, *, by: Actor) -> Event | None:
    """Takes all factors and recovery codes from somebody who has lost them, and ends their
    sessions; None if there were none."""

    async def work(tx: Tx) -> Event | None:
        if not await clear(user, by=by, tx=tx):
            return None
        await user.forget_browsers(tx=tx)
        event = Event.of(FACTORS_RESET, by=by, subject=user.id)
        mine = {"user.$id": user.id}
        event.note_ended_sessions(await count_active(mine, tx))
        await mark_ended(mine, Reason.ENDED_BY_ADMIN, by=by, event=event, tx=tx)
        return await record(FACTORS_RESET, user, by=by, tx=tx, event=event)

    return await authorized_transaction(by, work, managing=user.id, ends_sessions=True)


async def clear(user: User, *, by: Actor, tx: Tx) -> bool:
    """Remove all factors and recovery codes of the user; whether there were any."""
    nothing = dict(KEPT.values())
    has_some = {"$or": [{name: {"$nin": [None, []]}} for name in nothing]}
    change = {"$set": {**nothing, "recovery_codes": []}}
    if not await _write(user, has_some, change, {}, by=by, tx=tx):
        return False
    passkeys = documents(PASSKEYS)
    await passkeys.delete_many({"user.$id": user.id}, session=tx)
    return True


async def remove_added_since(user: User, since: datetime, *, by: Actor, tx: Tx) -> None:
    """Remove the factors that were added at this moment or later, and all recovery codes, which may
    have been made anew. For an account that is taken back from an intruder."""
    passkeys = documents(PASSKEYS)
    added = {"user.$id": user.id, "created_at": {"$gte": since}}
    theirs = [row["_id"] async for row in passkeys.find(added, {"_id": 1}, session=tx)]
    await passkeys.delete_many(added, session=tx)
    change: dict[str, Any] = {
        "$set": {"recovery_codes": []},
        "$pull": {"passkeys": {"$in": [ref(PASSKEYS, each) for each in theirs]}},
    }
    if user.totp and user.totp.added_at >= since:
        change["$set"]["totp"] = None
    await _write(user, {}, change, {}, by=by, tx=tx)


def words(kind: Factor, name: str | None) -> str:
    return f"{NAMES[kind]} “{name}”" if name else NAMES[kind]


def _details(kind: Factor, name: str | None) -> dict[str, Any]:
    return {"factor": kind.value} | ({"name": name} if name else {})


async def _write(
    user: User,
    condition: Mapping[str, Any],
    change: Mapping[str, Any],
    besides: Mapping[str, Any],
    *,
    by: Actor,
    tx: Tx,
) -> bool:
    """The conditional update. It may change what roles give, so it raises the version too."""
    settings = {**change.get("$set", {}), **besides, "authz_by": user_ref(by.user_id)}
    update = {**change, "$set": settings, "$inc": {"authz_version": 1}}
    return await User.change({"_id": user.id, **condition}, update, tx=tx)


async def _show(kind: Factor, digest: str, event: Event, *, by: Actor, tx: Tx) -> None:
    """The actor's session has shown the factor, and gets another token; the others are over."""
    await Session.change(
        {"_id": by.session_id, "ended_at": None},
        {"$set": {"factor": kind.value, "digest": digest, "confirmed_at": clock.now()}},
        tx=tx,
    )
    others = {"user.$id": by.user_id, "_id": {"$ne": by.session_id}, "factor": None}
    await mark_ended(others, Reason.FACTOR_REQUIRED, by=by, event=event, tx=tx)
