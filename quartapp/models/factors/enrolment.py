"""Adding, removing and resetting second factors of any kind.

The modules `totp` and `passkey` call `add` and `remove` with the update for their kind.
`models.factors.factor` says in which field of the user document each kind is stored.

An authorized transaction raises SessionOver if the actor's session has ended, RightsChanged if it
has lost a permission, and MissingPermission if the user is somebody else who holds a permission
that the actor lacks. The functions do not wait for the workers: the caller does
(`wait_until_enforced`).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from quartapp import clock
from quartapp.activities import FACTOR_ADDED, FACTOR_REMOVED, FACTORS_RESET
from quartapp.db.mongo import Tx
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import inform, record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import documents
from quartapp.models.base.references import PASSKEYS, DomainError, ref
from quartapp.models.base.tokens import new_token
from quartapp.models.factors import recovery_codes
from quartapp.models.factors.factor import KEPT, Factor, stored_words
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session, count_active, mark_ended

Also = Callable[[Tx], Awaitable[object]]


class HasFactor(DomainError):
    """The condition of an update no longer holds: the factor has been set up already."""

    def __init__(self) -> None:
        super().__init__(_("This is already set up. To set it up again, remove it first."))


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The result of `add`: the audit event, not None, and what only the first factor brings.

    `codes` are the recovery codes, in plain text, to be shown once. `token` is the new token of the
    session in which the factor was set up; the old one no longer works.
    """

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
    """Add a second factor to the user, in an authorized transaction that manages the user.

    Applies the update `change` to the user document if it still matches `unless`; raises HasFactor
    if not. The update also increments `authz_version`. Then awaits `also(tx)`, which may write more
    or raise an error to abort everything. Raises Unverified if the account has to verify its email
    address first. `name` is the name of a passkey, for the texts.

    Notifies and emails the user, and records the event FACTOR_ADDED.

    With the user's first factor, it also stores ten new recovery codes and replaces the token of
    the actor's session, which counts as having shown this factor and as just re-authenticated. The
    user's other sessions, which were opened without a factor, end with FACTOR_REQUIRED. No barrier
    mark is inserted.
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
        await inform(FACTOR_ADDED, user, by=by, tx=tx, factor=stored_words(kind, name))
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
    """Remove a second factor from the user, in an authorized transaction that manages the user.

    Applies the update `change` to the user document if it still matches `condition`, and returns
    None without any effect if not. The update also increments `authz_version`. Then awaits
    `also(tx)`. Deletes the recovery codes if no factor is left.

    Notifies and emails the user, and records and returns the event FACTOR_REMOVED. Ends no
    sessions, and inserts no barrier mark.
    """

    async def work(tx: Tx) -> Event | None:
        if not await _write(user, condition, change, {}, by=by, tx=tx):
            return None
        if also:
            await also(tx)
        after = await User.get(user.id, session=tx)
        if after is not None and not after.factors:
            await User.change({"_id": user.id}, {"$set": {"recovery_codes": []}}, tx=tx)
        details, named = _details(kind, name), {"factor": stored_words(kind, name)}
        return await record(FACTOR_REMOVED, user, by=by, tx=tx, words=named, **details)

    return await authorized_transaction(by, work, managing=user.id)


async def reset(user: User, *, by: Actor) -> Event | None:
    """Remove all factors and recovery codes of a user who has lost them, and end all of their
    sessions.

    In an authorized transaction that manages the user. All browsers of the user become unknown. The
    sessions end with ENDED_BY_ADMIN, the user is notified and emailed, and the event FACTORS_RESET
    is recorded with a barrier mark and returned; `event.ended_sessions` says how many sessions were
    active. Returns None without any effect if the user has no factor.
    """

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
    """Remove all factors of the user, with their passkey documents, and all recovery codes, in the
    caller's transaction; return whether the user had a factor.

    Increments `authz_version`. Without a factor, writes nothing and returns False. The caller
    records it and informs the user.
    """
    nothing = dict(KEPT.values())
    has_some = {"$or": [{name: {"$nin": [None, []]}} for name in nothing]}
    change = {"$set": {**nothing, "recovery_codes": []}}
    if not await _write(user, has_some, change, {}, by=by, tx=tx):
        return False
    passkeys = documents(PASSKEYS)
    await passkeys.delete_many({"user.$id": user.id}, session=tx)
    return True


async def remove_added_since(user: User, since: datetime, *, by: Actor, tx: Tx) -> None:
    """Remove the factors that were added at this moment or later, with their passkey documents, and
    all recovery codes, in the caller's transaction.

    For an account that its owner takes back from an intruder, who may have created new codes.
    Increments `authz_version` even if there was nothing to remove. The caller records it and
    informs the user.
    """
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


def _details(kind: Factor, name: str | None) -> dict[str, Any]:
    """Return the details of an audit event about this factor."""
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
    """Apply the change to the user document if it matches the condition; return whether it did.

    Also sets the fields `besides`. A factor can change which roles count, so this is a change of
    the user's authority (`User.change_authority`).
    """
    change = {**change, "$set": {**change.get("$set", {}), **besides}}
    return await user.change_authority(condition, change, by=by, tx=tx)


async def _show(kind: Factor, digest: str, event: Event, *, by: Actor, tx: Tx) -> None:
    """Mark the actor's session as having shown the factor, and end the user's sessions that have
    not.

    The actor's session gets the token of this digest and counts as just re-authenticated. The
    others end with FACTOR_REQUIRED and refer to the event.
    """
    await Session.change(
        {"_id": by.session_id, "ended_at": None},
        {"$set": {"factor": kind.value, "digest": digest, "confirmed_at": clock.now()}},
        tx=tx,
    )
    others = {"user.$id": by.user_id, "_id": {"$ne": by.session_id}, "factor": None}
    await mark_ended(others, Reason.FACTOR_REQUIRED, by=by, event=event, tx=tx)
