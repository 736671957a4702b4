"""Requests for roles: a user asks for a role with a reason, and an administrator decides.

Granting a request is a grant by that administrator, with all of its checks. Declining it needs the
same permissions: nobody decides about what they could not grant. A decision is a conditional update
of the open request in the transaction of its effects, so there is one.

What happens in an authorized transaction raises SessionOver or RightsChanged if the actor's session
has ended or has lost a permission.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.activities import (
    ROLE_REQUEST_DECLINED,
    ROLE_REQUEST_DECLINED_WITH_REASON,
    ROLE_REQUEST_WITHDRAWN,
    ROLE_REQUESTED,
    Activity,
)
from quartapp.db.mongo import Tx, transaction
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts import status
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.privileges import (
    Lacks,
    refusals_to_give,
    require_to_give,
)
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record, documents, first_id_at
from quartapp.models.base.references import (
    ROLE_REQUESTS,
    ROLES,
    USERS,
    DomainError,
    linked_id,
    role_ref,
    user_ref,
)
from quartapp.models.notifications.notice import notify, notify_all
from quartapp.models.roles.refusals import RoleGone
from quartapp.models.roles.role import Role
from quartapp.policy import Permission

PAGE = 50
# A user can make this many requests in 24 hours.
PER_DAY = 10
DAY = timedelta(days=1)
# So many open requests are counted for the navigation.
COUNTED = 100
# So many administrators are notified of a request. All of them see it in the list.
NOTIFIED = 20
# How long a request is kept after the decision.
KEPT = timedelta(days=400)


class RequestState(StrEnum):
    """The state of a request. VOID: the role was deleted before the decision."""

    OPEN = "open"
    GRANTED = "granted"
    DECLINED = "declined"
    WITHDRAWN = "withdrawn"
    VOID = "void"


DECIDED = [state.value for state in RequestState if state is not RequestState.OPEN]


class NotRequestable(DomainError):
    """The role cannot be requested, or the user has it."""

    field = "role"

    def __init__(self, name: str, *, held: bool = False) -> None:
        words = (
            _("You have the role %(role)s already.")
            if held
            else _("The role %(role)s cannot be requested.")
        )
        super().__init__(words % {"role": name})


class RequestedAlready(DomainError):
    """The user has an open request for the role."""

    field = "role"

    def __init__(self, name: str) -> None:
        words = _("You have already asked for the role %(role)s. Wait for the decision.")
        super().__init__(words % {"role": name})


class TooManyRequests(DomainError):
    """The user has made as many requests as one can make in a day."""

    def __init__(self) -> None:
        words = _("You can ask for %(count)s roles in 24 hours. Try again tomorrow.")
        super().__init__(words % {"count": PER_DAY})


class DecidedAlready(DomainError):
    """The request was decided or withdrawn before; the text says how."""

    def __init__(self, request: "RoleRequest | None") -> None:
        words = _TEXTS[request.state if request else None]
        super().__init__(words % {"by": (request and request.decider) or _("an operator")})


_TEXTS = {
    None: _("This request does not exist any more."),
    RequestState.OPEN: _("This request was changed. Try again."),
    RequestState.GRANTED: _("This request was already granted by %(by)s."),
    RequestState.DECLINED: _("This request was already declined by %(by)s."),
    RequestState.WITHDRAWN: _("This request was withdrawn."),
    RequestState.VOID: _("The role of this request was deleted."),
}


class RoleRequest(Record):
    """A request of `user` for `role`, which had this `name` then.

    `answer` is what the administrator wrote when declining it, and `until` the end of the grant.
    A decided request is deleted after KEPT.
    """

    user: Link[User]
    role: Link[Role]
    name: str
    reason: str
    created_at: datetime = Field(default_factory=clock.now)
    state: RequestState = RequestState.OPEN
    decided_at: datetime | None = None
    decided_by: Link[User] | None = None
    answer: str = ""
    until: datetime | None = None

    class Settings:
        name = ROLE_REQUESTS
        indexes = [
            # One open request of a user for a role.
            IndexModel(
                [("role.$id", 1), ("user.$id", 1)],
                name="open_for_role",
                unique=True,
                partialFilterExpression={"state": RequestState.OPEN.value},
            ),
            IndexModel([("state", 1), ("_id", -1)], name="by_state"),
            IndexModel([("user.$id", 1), ("_id", -1)], name="of_user"),
            IndexModel(
                [("decided_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            ),
        ]

    # ---- finding

    @classmethod
    async def open_page(
        cls, *, before: PydanticObjectId | None = None, limit: int = PAGE
    ) -> list[Self]:
        """Return at most `limit` open requests, newest first, with `user`, `role` and `decided_by`
        fetched; those that were deleted stay links. `before` is the id of the last request of the
        page before."""
        return await cls._page({"state": RequestState.OPEN.value}, before, limit)

    @classmethod
    async def decided_page(
        cls, *, before: PydanticObjectId | None = None, limit: int = PAGE
    ) -> list[Self]:
        """Return at most `limit` requests that are not open any more, as `open_page` does."""
        return await cls._page({"state": {"$in": DECIDED}}, before, limit)

    @classmethod
    async def of_user(
        cls, user_id: PydanticObjectId, *, before: PydanticObjectId | None = None, limit: int = PAGE
    ) -> list[Self]:
        """Return at most `limit` requests of the user in any state, as `open_page` does."""
        return await cls._page({"user.$id": user_id}, before, limit)

    @classmethod
    async def with_links(cls, request_id: PydanticObjectId) -> Self | None:
        """Return the request of this id as `open_page` does, or None."""
        fetch = ["user", "role", "decided_by"]
        found = await cls.find_with_links({"_id": request_id}, limit=1, fetch=fetch)
        return found[0] if found else None

    @classmethod
    async def _page(
        cls, match: dict[str, Any], before: PydanticObjectId | None, limit: int
    ) -> list[Self]:
        if before:
            match["_id"] = {"$lt": before}
        fetch = ["user", "role", "decided_by"]
        return await cls.find_with_links(match, sort="-_id", limit=limit, fetch=fetch)

    @classmethod
    async def count_open(cls) -> int:
        """Return how many requests are open, but at most COUNTED."""
        match = {"state": RequestState.OPEN.value}
        return await cls.get_motor_collection().count_documents(match, limit=COUNTED)

    @property
    def asker(self) -> User | None:
        """The user, if fetched; None if the account is deleted."""
        return self.user if isinstance(self.user, User) else None

    @property
    def decider(self) -> str | None:
        """The name of the user who decided, if fetched; None for the command line, and if the
        account is deleted."""
        return self.decided_by.username if isinstance(self.decided_by, User) else None

    @property
    def role_name(self) -> str:
        """The name of the role, or the one it had if it is deleted or not fetched."""
        return self.role.name if isinstance(self.role, Role) else self.name

    @property
    def role_deleted(self) -> bool:
        """Whether the role was deleted; also true if the role was not fetched. Until a job has
        completed the deletion, the request may be open."""
        return not isinstance(self.role, Role)

    @property
    def permissions(self) -> list[str]:
        """The permissions of the role, if it was fetched; empty for a deleted one."""
        return self.role.permissions if isinstance(self.role, Role) else []

    # ---- asking

    @classmethod
    async def ask(cls, user: User, role: Role, reason: str, *, by: Actor) -> Self:
        """Store a request of the user, who is the actor, and return it.

        In an authorized transaction, which records the event ROLE_REQUESTED. After the commit,
        another transaction notifies up to NOTIFIED users who can manage users, so that requests do
        not conflict; if it fails, the error is raised although the request is stored. Raises
        RoleGone, also if the account was deleted, NotRequestable, also if the user has the role,
        RequestedAlready and TooManyRequests.
        """
        request = cls(user=user_ref(user.id), role=role_ref(role.id), name=role.name, reason=reason)

        async def work(tx: Tx) -> None:
            # Requests and grants of one user at the same time conflict.
            await User.change({"_id": user.id}, {"$inc": {"acts": 1}}, tx=tx)
            there, found = await User.get(user.id, session=tx), await Role.get(role.id, session=tx)
            if found is None or there is None:
                raise RoleGone(role.name)
            for refusal in await cls.refusals_to_ask(there, found, tx=tx):
                raise refusal
            try:
                await request.insert(session=tx)
            except DuplicateKeyError:
                raise RequestedAlready(role.name) from None
            await record(ROLE_REQUESTED, user.id, by=by, tx=tx, role=found.name)

        await authorized_transaction(by, work)
        await transaction(lambda tx: request._notify_administrators(user.username, tx))
        return request

    @classmethod
    async def refusals_to_ask(
        cls, user: User, role: Role | None, *, tx: Tx | None = None
    ) -> list[DomainError]:
        """Return the errors with which `ask` would refuse the request of the user now.

        Of the role, which is not checked if it is None: NotRequestable or RequestedAlready. And
        TooManyRequests if the user has made PER_DAY requests in the last 24 hours, whatever became
        of them.
        """
        found: list[DomainError] = []
        if role and (user.holds(role) or not role.can_be_requested):
            found.append(NotRequestable(role.name, held=user.holds(role)))
        elif role:
            match = {"role.$id": role.id, "user.$id": user.id, "state": RequestState.OPEN.value}
            if await cls.find_one(match, session=tx):
                found.append(RequestedAlready(role.name))
        recent = {"user.$id": user.id, "_id": {"$gte": first_id_at(clock.now() - DAY)}}
        collection = cls.get_motor_collection()
        if await collection.count_documents(recent, limit=PER_DAY, session=tx) >= PER_DAY:
            found.append(TooManyRequests())
        return found

    def refusals_to_decide(self, *, lacks: Lacks) -> list[DomainError]:
        """Return the error with which every decision would be refused now, if the stored request,
        with its links fetched, is as this object: DecidedAlready, RoleGone or MissingPermission for
        the role. `lacks` tells what the actor lacks."""
        if self.state is not RequestState.OPEN or self.asker is None:
            return [DecidedAlready(self if self.asker else None)]
        if not isinstance(self.role, Role):
            return [RoleGone(self.name)]
        return [*refusals_to_give(self.role.name, self.role.permissions, lacks)]

    async def _notify_administrators(self, username: str, tx: Tx) -> None:
        """Notify up to NOTIFIED active users who hold a role that includes `users.manage`, but not
        the one who asks. In the caller's transaction."""
        managing = {"permissions": Permission.USERS_MANAGE.value}
        roles = await documents(ROLES).find(managing, {"_id": 1}, session=tx).to_list(None)
        held = {"roles.$id": {"$in": [role["_id"] for role in roles]}}
        match = {**held, **status.active_filter(clock.now())}
        rows = documents(USERS).find(match, {"_id": 1}, limit=NOTIFIED, session=tx)
        ids = [row["_id"] for row in await rows.to_list(None) if row["_id"] != linked_id(self.user)]
        await notify_all(ids, ROLE_REQUESTED, tx, by=username, role=self.name)

    async def withdraw(self, *, by: Actor) -> None:
        """Withdraw the request, in an authorized transaction, and record the event
        ROLE_REQUEST_WITHDRAWN, also if the role was deleted. Sends no notification. Does not check
        that it is the actor's: the route does. Raises DecidedAlready if it is not open."""

        async def work(tx: Tx) -> None:
            await self._decide(RequestState.WITHDRAWN, by, tx)
            await self._record(ROLE_REQUEST_WITHDRAWN, by, tx)

        await authorized_transaction(by, work)

    # ---- deciding

    async def grant(self, *, by: Actor, until: datetime | None = None) -> Event | None:
        """Mark the request as granted, give the user the role, with `until` only until that time,
        and return the event of the grant; None if the user has the role with this end already.

        In an authorized transaction that manages the user: see `User.grant`, whose effects it has
        and whose errors it raises. Raises DecidedAlready if the request is not open or the account
        was deleted, and RoleGone if the role was deleted.
        """

        async def work(tx: Tx) -> Event | None:
            await self._decide(RequestState.GRANTED, by, tx, until=until)
            role, user = await self._role(tx), await User.get(linked_id(self.user), session=tx)
            if user is None:
                raise DecidedAlready(None)
            return await user.grant_in_transaction(role, by=by, until=until, tx=tx)

        return await authorized_transaction(by, work, managing=linked_id(self.user))

    async def decline(self, *, by: Actor, answer: str = "") -> None:
        """Decline the request, notify the user, with the `answer` if there is one, and record the
        event ROLE_REQUEST_DECLINED.

        The event does not contain the answer. In an authorized transaction that manages the user.
        Raises DecidedAlready if the request is not open, RoleGone if the role was deleted, and
        MissingPermission if the role, or the user, has a permission that the actor does not hold.
        """

        async def work(tx: Tx) -> None:
            await self._decide(RequestState.DECLINED, by, tx, answer=answer)
            await require_to_give(by, [(await self._role(tx)).id], tx)
            words = {"by": by.username, "role": self.name}
            user_id = linked_id(self.user)
            if answer:
                told = ROLE_REQUEST_DECLINED_WITH_REASON
                await notify(user_id, told, tx, **words, answer=answer)
            else:
                await notify(user_id, ROLE_REQUEST_DECLINED, tx, **words)
            await self._record(ROLE_REQUEST_DECLINED, by, tx)

        await authorized_transaction(by, work, managing=linked_id(self.user))

    async def _role(self, tx: Tx) -> Role:
        """Return the stored role. Raises RoleGone if it was deleted: what it allowed is not known
        any more, so nobody can show that they may decide about it."""
        role = await Role.get(linked_id(self.role), session=tx)
        if role is None:
            raise RoleGone(self.name)
        return role

    async def _decide(self, state: RequestState, by: Actor, tx: Tx, **fields: Any) -> None:
        """Store this state of the open request, the actor, the time and the given fields. This
        object stays as it was. Raises DecidedAlready if the request is not open."""
        change = {"state": state.value, "decided_at": clock.now(), **fields}
        change["decided_by"] = user_ref(by.user_id)
        match = {"_id": self.id, "state": RequestState.OPEN.value}
        if not await RoleRequest.change(match, {"$set": change}, tx=tx):
            now = await RoleRequest.get(self.id, session=tx)
            if now and now.decided_by:
                decider = await User.get(linked_id(now.decided_by), session=tx)
                now.decided_by = decider or now.decided_by  # type: ignore[assignment]
            raise DecidedAlready(now)

    async def _record(self, activity: Activity, by: Actor, tx: Tx) -> None:
        await Event.record(activity, by=by, subject=linked_id(self.user), tx=tx, role=self.name)

    @classmethod
    async def void(cls, role_ids: Collection[PydanticObjectId]) -> None:
        """Set the open requests for these roles, which were deleted, to VOID, a batch at a time.
        Sends no notification and records no event."""
        match = {"role.$id": {"$in": list(role_ids)}, "state": RequestState.OPEN.value}
        change = {"state": RequestState.VOID.value, "decided_at": clock.now()}
        async for ids in cls.batches(match):
            still = {"_id": {"$in": ids}, "state": RequestState.OPEN.value}
            await cls.change_all(still, {"$set": change})
