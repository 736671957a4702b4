"""One action on several users at once: grant or revoke a role, end sessions, disable accounts.

Each user is a transaction of their own, so some may be refused while others are done. The document
tells what became of each of them.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from beanie import PydanticObjectId
from pydantic import BaseModel, Field, PrivateAttr
from pymongo import IndexModel

from quartapp import clock
from quartapp.activities import ROLE_END_REMOVED
from quartapp.db.mongo import OutcomeUnknown
from quartapp.models.accounts.account import Unverified
from quartapp.models.accounts.administrators import LastAdministrator
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.receipt import Reach
from quartapp.models.authorization.privileges import MissingPermission
from quartapp.models.authorization.transaction import RightsChanged, SessionOver
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import UserRef, user_ref
from quartapp.models.roles.refusals import RoleGone
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from quartapp.policy import Permission

MOST_USERS = 100
KEPT = timedelta(days=30)


class Action(StrEnum):
    """What can be done to several users at once. The values are stored, and part of URLs."""

    GRANT = "grant"
    REVOKE = "revoke"
    END_SESSIONS = "end-sessions"
    DISABLE = "disable"

    @property
    def permission(self) -> Permission:
        """The permission that the action needs."""
        sessions = self is Action.END_SESSIONS
        return Permission.SESSIONS_MANAGE if sessions else Permission.USERS_MANAGE


class Outcome(StrEnum):
    """What became of the action for one user. UNCHANGED: there was nothing to do. PENDING: no
    result is stored, because the process is doing the action, or ended before it stored the
    results. UNKNOWN: the database did not confirm it. BUILT_IN, the refusal to delete a role,
    occurs only in previews."""

    PENDING = "pending"
    DONE = "done"
    UNCHANGED = "unchanged"
    MISSING_PERMISSION = "missing_permission"
    LAST_ADMINISTRATOR = "last_administrator"
    UNVERIFIED = "unverified"
    ROLE_GONE = "role_gone"
    RIGHTS_CHANGED = "rights_changed"
    SESSION_OVER = "session_over"
    UNKNOWN = "unknown"
    BUILT_IN = "built_in"


REFUSALS: dict[type[Exception], Outcome] = {
    MissingPermission: Outcome.MISSING_PERMISSION,
    LastAdministrator: Outcome.LAST_ADMINISTRATOR,
    Unverified: Outcome.UNVERIFIED,
    RoleGone: Outcome.ROLE_GONE,
    RightsChanged: Outcome.RIGHTS_CHANGED,
    OutcomeUnknown: Outcome.UNKNOWN,
}


class Result(BaseModel):
    """The outcome for the user of this id. `missing` are the permissions that the actor lacks, and
    `event` is the audit event of what was done. `end_removed` is whether the user had the role
    before, with an end that the grant has removed."""

    user: PydanticObjectId
    outcome: Outcome = Outcome.PENDING
    missing: list[str] = []
    event: PydanticObjectId | None = None
    end_removed: bool = False


class BulkAction(Record):
    """An action on several users, its actor and its results. Kept for 30 days."""

    action: Action
    role: str | None = None
    by: UserRef | None = None
    at: datetime = Field(default_factory=clock.now)
    results: list[Result] = []
    _events: list[Event] = PrivateAttr(default_factory=list)

    class Settings:
        name = "bulk_actions"
        indexes = [
            IndexModel([("at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds()))
        ]

    @classmethod
    async def begin(
        cls, action: Action, role: Role | None, users: Collection[User], *, by: Actor
    ) -> "BulkAction":
        """Store an action on these users, at most MOST_USERS, of which nothing is done yet, and
        return it.

        The actor comes last, if included, because the action may end the actor's session.
        """
        assert len(users) <= MOST_USERS
        ordered = sorted(users, key=lambda user: user.id == by.user_id)
        started = cls(
            action=action,
            role=role and role.name,
            by=user_ref(by.user_id),
            results=[Result(user=user.id) for user in ordered],
        )
        stored = started.model_dump(by_alias=True) | {"by": user_ref(by.user_id)}
        await cls.get_motor_collection().insert_one(stored)
        return started

    @property
    def events(self) -> Sequence[Event]:
        """The audit events of what `run` has done on this object so far. Not stored."""
        return self._events

    async def run(self, role: Role | None, users: Collection[User], *, by: Actor) -> None:
        """Do the action for one user after the other, then store all results. The caller waits for
        the barrier marks of those of the `events` that have one, also after an error.

        The users and the role are those of `begin`. Each user has the effects of the operation of
        `User`, in a transaction of its own. A refusal concerns only its user. If the actor's
        session ends, the others are not done (SESSION_OVER). Errors of the database are raised,
        after the results so far were stored.
        """
        found = {user.id: user for user in users}
        over = False
        try:
            for result in self.results:
                if over:
                    result.outcome = Outcome.SESSION_OVER
                    continue
                try:
                    event = await self._do(found[result.user], role, by)
                except SessionOver:
                    result.outcome, over = Outcome.SESSION_OVER, True
                except tuple(REFUSALS) as refused:
                    result.outcome = REFUSALS[type(refused)]
                    result.missing = getattr(refused, "missing", [])
                else:
                    result.outcome = Outcome.DONE if event else Outcome.UNCHANGED
                    if event:
                        result.event = event.id
                        result.end_removed = event.verb == ROLE_END_REMOVED.audit
                        self._events.append(event)
        finally:
            results = [result.model_dump() for result in self.results]
            await BulkAction.change({"_id": self.id}, {"$set": {"results": results}})

    async def _do(self, user: User, role: Role | None, by: Actor) -> Event | None:
        """Do the action for one user, as the operation of `User` does; return its event, or None if
        there was nothing to do."""
        match self.action:
            case Action.GRANT:
                assert role is not None
                return await user.grant(role, by=by)
            case Action.REVOKE:
                assert role is not None
                return await user.revoke(role, by=by)
            case Action.END_SESSIONS:
                return await user.end_sessions(Reason.ENDED_BY_ADMIN, by=by)
            case Action.DISABLE:
                return await user.disable(by=by)

    async def reach(self) -> Reach:
        """Return how many open tabs of all these users have acknowledged, as the workers have
        stored it for the events."""
        ids = [result.event for result in self.results if result.event]
        events = await Event.find({"_id": {"$in": ids}}).to_list() if ids else []
        await Event.add_receipts(events)
        workers = {
            receipt.worker for event in events for receipt in event.receipts if receipt.acked
        }
        return Reach.sum([event.reach for event in events], workers=len(workers))

    async def users(self) -> dict[PydanticObjectId, User]:
        """Return those of the users who still exist, by their ids."""
        ids = [result.user for result in self.results]
        return {user.id: user for user in await User.find({"_id": {"$in": ids}}).to_list()}


def count_done(results: Sequence[Result]) -> int:
    """Return for how many users the action was done."""
    return sum(result.outcome is Outcome.DONE for result in results)
