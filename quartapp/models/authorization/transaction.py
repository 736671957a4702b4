"""Transactions that hold only if the actor's authority lasts until the commit."""

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
    """The session in which something was begun ended before it was done."""

    def __init__(self, session_id: PydanticObjectId) -> None:
        self.session_id = session_id
        super().__init__("Your session ended before this was done, so nothing was changed.")


class RightsChanged(DomainError):
    """A permission that the actor came with was taken away before it was done."""

    def __init__(self) -> None:
        super().__init__("Your permissions changed before this was done, so nothing was changed.")


async def authorized_transaction(
    by: Actor,
    work: Callable[[Tx], Coroutine[Any, Any, T]],
    *,
    managing: PydanticObjectId | None = None,
    ends_sessions: bool = False,
) -> T:
    """Run `work(tx)` in a transaction that commits only if the actor still has the authority, and
    return what it returns. The transaction may run `work` several times.

    A request may be slow, and authority that was taken away meanwhile must not be used at its end.
    So the transaction also writes the actor's session document, which makes it conflict with any
    transaction that ends this session. Raises SessionOver if the session has ended, and
    RightsChanged if the actor has lost one of the permissions in `by.permissions`.

    `managing` is the user whose account is changed. Raises MissingPermission if that is another
    user who holds a permission that the actor does not hold.

    `ends_sessions` says that the returned event ends sessions: a barrier mark is inserted after all
    other writes, so that the caller can wait until every worker has seen them. If `work` returns
    None, nothing was changed and no mark is inserted. Raises RuntimeError for an event of an
    activity that ends sessions if `ends_sessions` was not set.
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
    user = await documents(USERS).find_one({"_id": by.user_id}, session=tx) or {}
    if by.session_id is not None and status.has_expired(user, clock.now()):
        raise SessionOver(by.session_id)
    if user.get("authz_version") == by.version:
        return
    session = await documents(SESSIONS).find_one({"_id": by.session_id}, session=tx) or {}
    held = await usable(user, shown=has_shown_one(session, user), tx=tx)
    if not by.permissions <= held.permissions:
        raise RightsChanged
