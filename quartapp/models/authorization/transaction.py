"""`authorized_transaction`: a transaction that commits only if the actor is still authorized."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.activities import catalogue
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts import status
from quartapp.models.audit.event import Event
from quartapp.models.authorization.privileges import require_to_manage, usable
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import documents
from quartapp.models.base.references import SESSIONS, USERS, DomainError
from quartapp.models.factors.factor import has_shown_one

T = TypeVar("T")


class SessionOver(DomainError):
    """The actor's session ended, or their account expired, before the change was committed."""

    def __init__(self, session_id: PydanticObjectId) -> None:
        self.session_id = session_id
        super().__init__("Your session ended before this was done, so nothing was changed.")


class RightsChanged(DomainError):
    """The actor lost a permission, with which the request was authorized, before the commit."""

    def __init__(self) -> None:
        super().__init__("Your permissions changed before this was done, so nothing was changed.")


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

    `managing` is the user whose account is changed. Raises MissingPermission if that is another
    user who holds a permission that the actor does not hold.

    `ends_sessions` means that the event that `work` returns ends sessions: then a barrier mark is
    inserted after all other writes, for which the caller waits after the commit
    (`wait_until_enforced`). If `work` returns None, nothing has changed and no mark is inserted.
    Raises RuntimeError if `work` returns an event of an activity that ends sessions and
    `ends_sessions` is false.
    """

    async def checked(tx: Tx) -> T:
        if by.session_id is not None:
            living = {"_id": by.session_id, "ended_at": None}
            acts = {"$inc": {"acts": 1}}
            written = await documents(SESSIONS).update_one(living, acts, session=tx)
            if not written.modified_count:
                raise SessionOver(by.session_id)
            await _require_permissions(by, tx)
        if managing is not None:
            await require_to_manage(by, managing, tx)
        done = await work(tx)
        event = done if isinstance(done, Event) else None
        if ends_sessions and event:
            await event.mark(tx, asker=by.worker)
        elif event and catalogue.ends_sessions(event.verb):
            raise RuntimeError(f"{event.verb} ends sessions, so ends_sessions has to be set")
        return done

    return await transaction(checked)


async def _require_permissions(by: Actor, tx: Tx) -> None:
    """Raise SessionOver if the actor's account has expired, and RightsChanged if permissions are
    missing.

    Compares permissions only if the user's `authz_version` is not the one that the request came
    with. For an actor with a session.
    """
    user = await documents(USERS).find_one({"_id": by.user_id}, session=tx) or {}
    if by.session_id is not None and status.has_expired(user, clock.now()):
        raise SessionOver(by.session_id)
    if user.get("authz_version") == by.version:
        return
    session = await documents(SESSIONS).find_one({"_id": by.session_id}, session=tx) or {}
    held = await usable(user, shown=has_shown_one(session, user), tx=tx)
    if not by.permissions <= held.permissions:
        raise RightsChanged
