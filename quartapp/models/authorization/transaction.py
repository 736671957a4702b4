"""`authorized_transaction`: a transaction that commits only if the actor is still authorized."""

from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.activities import catalogue
from quartapp.db.mongo import Tx, transaction
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts import role_ends, status
from quartapp.models.audit.event import Event
from quartapp.models.authorization.permissions import principal_version, usable_roles
from quartapp.models.authorization.privileges import Holdings, require_to_manage
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import documents
from quartapp.models.base.references import (
    ROLE_DELETIONS,
    ROLES,
    SESSIONS,
    USERS,
    DomainError,
)
from quartapp.models.base.write_lock import share_roles
from quartapp.models.factors.factor import has_shown_one

T = TypeVar("T")


class SessionOver(DomainError):
    """The actor's session ended, or their account expired, before the change was committed."""

    def __init__(self, session_id: PydanticObjectId) -> None:
        self.session_id = session_id
        super().__init__(_("Your session ended before this was done, so nothing was changed."))


class RightsChanged(DomainError):
    """The actor lost a permission, with which the request was authorized, before the commit."""

    def __init__(self) -> None:
        super().__init__(
            _("Your permissions changed before this was done, so nothing was changed.")
        )


async def authorized_transaction(
    by: Actor,
    work: Callable[[Tx], Coroutine[Any, Any, T]],
    *,
    managing: PydanticObjectId | None = None,
    ends_sessions: bool = False,
) -> T:
    """Run `work(tx)` in a transaction that commits only if the actor is still authorized, and
    return its result.

    `work` may run several times, because a transaction that conflicts with another is repeated.
    What it raises aborts the transaction. Raises OutcomeUnknown if that does not succeed in time.

    Before `work`, for an actor with a session: increments `acts` in the session's document, so that
    a transaction that ends this session conflicts with this one. Raises SessionOver if the session
    has ended or the account has expired, and RightsChanged if the actor has lost one of
    `by.permissions`. An actor without a session, such as the command line, skips these checks.

    After `work`, for an actor with an account: shares the lock of the roles (`share_roles`), so
    that a transaction that edits or deletes a role conflicts with this one.

    `managing` is the user whose account is changed. Raises MissingPermission if that is another
    user who holds a permission that the actor does not hold.

    `ends_sessions` means that the event that `work` returns ends sessions: then a barrier mark is
    inserted after all other writes, for which the caller waits after the commit
    (`wait_until_enforced`). If `work` returns None, nothing has changed and no mark is inserted.
    Raises RuntimeError if `work` returns an event of an activity that ends sessions and
    `ends_sessions` is false.
    """

    async def checked(tx: Tx) -> T:
        session: Mapping[str, Any] | None = {}
        if by.session_id is not None:
            living = {"_id": by.session_id, "ended_at": None}
            acts = {"$inc": {"acts": 1}}
            session = await documents(SESSIONS).find_one_and_update(living, acts, session=tx)
            if session is None:
                raise SessionOver(by.session_id)
            await _require_permissions(by, session, tx)
        if managing is not None:
            await require_to_manage(by, session, managing, tx)
        done = await work(tx)
        if by.user_id is not None:
            await share_roles(tx)
        event = done if isinstance(done, Event) else None
        if ends_sessions and event:
            await event.mark(tx, asker=by.worker)
        elif event and catalogue.ends_sessions(event.verb):
            raise RuntimeError(f"{event.verb} ends sessions, so ends_sessions has to be set")
        return done

    return await transaction(checked)


async def _require_permissions(by: Actor, session: Mapping[str, Any], tx: Tx) -> None:
    """Raise SessionOver if the actor's session is over, and RightsChanged if permissions are
    missing.

    The session is over if the account or the grant of a role of the user has expired, if the
    session lists a role that the user does not hold any more, or if the user held a role that was
    deleted.
    Compares permissions only if their version (`principal_version`) is not the one that the request
    came with. Reads the user and the roles with one query.
    """
    now = clock.now()
    user = await _user_with_roles(by.user_id, tx)
    expired = role_ends.expired_roles(user, now)
    roles = user.get("held", [])
    found = {role["_id"] for role in roles}
    lost = found & expired or {link.id for link in session.get("roles", ())} - found
    gone = {link.id for link in user.get("roles", ())} - found - expired
    if lost or status.has_expired(user, now) or await _were_deleted(gone, tx):
        raise SessionOver(session["_id"])
    if principal_version(user, roles) == by.version:
        return
    held = Holdings.of(usable_roles(roles, shown=has_shown_one(session, user)))
    if not by.permissions <= held.permissions:
        raise RightsChanged


async def _were_deleted(role_ids: Collection[PydanticObjectId], tx: Tx) -> bool:
    """Return whether one of these roles was deleted by an operation of the application. Without
    ids, makes no query."""
    match = {"_id": {"$in": list(role_ids)}, "event": {"$ne": None}}
    found = role_ids and await documents(ROLE_DELETIONS).find_one(match, {"_id": 1}, session=tx)
    return bool(found)


async def _user_with_roles(user_id: PydanticObjectId | None, tx: Tx) -> Mapping[str, Any]:
    """Return the user's document with the documents of the user's roles in `held`; empty if there
    is no such user."""
    held = {"from": ROLES, "localField": "roles.$id", "foreignField": "_id", "as": "held"}
    pipeline = [{"$match": {"_id": user_id}}, {"$lookup": held}]
    found = await documents(USERS).aggregate(pipeline, session=tx).to_list(1)
    return found[0] if found else {}
