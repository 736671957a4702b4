"""What an action on users would do, for the page that asks for a confirmation.

It is read without locks, so it may be outdated when the action is confirmed. The action itself
checks everything again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beanie import PydanticObjectId

from quartapp import clock, policy
from quartapp.models.accounts import status
from quartapp.models.accounts.account import Account
from quartapp.models.accounts.administrators import administering
from quartapp.models.accounts.bulk_action import Action, Outcome
from quartapp.models.accounts.user import User
from quartapp.models.authorization.privileges import Lacks
from quartapp.models.base.counting import CappedCount
from quartapp.models.factors.factor import waits_for_one
from quartapp.models.roles.role import Role
from quartapp.models.sessions import expiry
from quartapp.models.sessions.session import Session

# How many stored sessions of the users of a role are read to count the active ones.
EXAMINED = 1000


@dataclass(frozen=True)
class Planned:
    """What the action would do to one user.

    `skipped` says why it would do nothing, with the permissions that the actor lacks in `missing`.
    `lost` are the permissions that the user would lose, and `gained` those that they would get.
    `sessions` is how many active sessions would end, and `removed_end` the end of the role that a
    grant without an end would remove.
    """

    user: User
    sessions: int = 0
    removed_end: datetime | None = None
    lost: Sequence[str] = ()
    gained: Sequence[str] = ()
    skipped: Outcome | None = None
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Preview:
    """What the action would do to each user; and whether an active administrator would remain, None
    if it takes no administrator away."""

    planned: Sequence[Planned]
    administrator_remains: bool | None = None

    @property
    def affected(self) -> list[Planned]:
        return [each for each in self.planned if each.skipped is None]

    @property
    def sessions(self) -> int:
        return sum(each.sessions for each in self.affected)


async def preview(
    action: Action,
    role: Role | None,
    users: Sequence[User],
    *,
    actor: PydanticObjectId | None,
    lacks: Lacks,
) -> Preview:
    """Return what the action would do to these users.

    A user is skipped who holds a permission that the actor lacks, for whom nothing would change, or
    who must verify their address before they can get the role.
    """
    roles = {each.id: each for each in await Role.everyone()}
    active = await active_sessions([user.id for user in users])
    planned = [
        _plan(action, role, user, roles, active.get(user.id, 0), actor, lacks) for user in users
    ]
    affected = {each.user.id for each in planned if each.skipped is None}
    remains = None
    if action is Action.DISABLE or (role and role.name == policy.ADMIN):
        remains = await _remains(action, affected)
    return Preview(planned, remains)


def _plan(
    action: Action,
    role: Role | None,
    user: User,
    roles: Mapping[PydanticObjectId, Role],
    sessions: int,
    actor: PydanticObjectId | None,
    lacks: Lacks,
) -> Planned:
    """Return what the action would do to the user, with the first reason to skip the user if there
    is one. `sessions` is how many active sessions they have."""
    held = roles_of(user, roles.values())
    has = role is not None and user.holds(role)
    removed_end = user.ends.get(role.id) if role and has else None
    theirs = {permission for each in held for permission in each.permissions}
    given = role.permissions if role and action is Action.GRANT else []
    missing = sorted({*(lacks(theirs) if user.id != actor else ()), *lacks(given)})
    unchanged = {
        Action.GRANT: has and removed_end is None,
        Action.REVOKE: not has,
        Action.END_SESSIONS: not sessions,
        Action.DISABLE: user.disabled_at is not None,
    }[action]
    if missing:
        return Planned(user, skipped=Outcome.MISSING_PERMISSION, missing=missing)
    if unchanged:
        return Planned(user, skipped=Outcome.UNCHANGED)
    if action is Action.GRANT:
        if user.awaits_verification and role and role.name != policy.MEMBER:
            return Planned(user, skipped=Outcome.UNVERIFIED)
        gained = sorted(set(given) - theirs)
        return Planned(user, gained=gained, removed_end=removed_end)
    lost = lost_without(user, role, held) if role else []
    return Planned(user, sessions=sessions, lost=lost)


def roles_of(user: User, roles: Collection[Role]) -> list[Role]:
    """Return those of the roles that the user holds now, in the same order."""
    ids = user.role_ids
    return [role for role in roles if role.id in ids]


def is_withheld(user: User, role: Role) -> bool:
    """Return whether the role gives the user nothing, because it requires a second factor and the
    user has none."""
    return waits_for_one(role.__dict__, shown=bool(user.factors))


def lost_without(user: User, role: Role, held: Collection[Role]) -> list[str]:
    """Return the permissions that the user would lose without the role, in order: those that it
    gives and none of the other roles in `held` does. A role that is withheld gives none."""
    if is_withheld(user, role):
        return []
    others = [each for each in held if each.id != role.id and not is_withheld(user, each)]
    return sorted(set(role.permissions) - {name for each in others for name in each.permissions})


def lost_without_factors(user: User, held: Collection[Role]) -> list[str]:
    """Return the permissions that the user would lose without second factors, in order: those of
    the roles in `held` that require one, and of no other."""
    needing = [role for role in held if role.requires_factor and not is_withheld(user, role)]
    others = {name for role in held if not role.requires_factor for name in role.permissions}
    return sorted({name for role in needing for name in role.permissions} - others)


async def active_sessions(users: Collection[PydanticObjectId]) -> dict[PydanticObjectId, int]:
    """Return how many active sessions each of these users has."""
    match = {"user.$id": {"$in": list(users)}, **expiry.active_filter(clock.now())}
    group = {"_id": "$user.$id", "count": {"$sum": 1}}
    found = Session.get_motor_collection().aggregate([{"$match": match}, {"$group": group}])
    return {row["_id"]: row["count"] async for row in found}


async def sessions_with_role(role: Role) -> CappedCount:
    """Return how many active sessions have used the role, among EXAMINED stored ones; with `more`
    if there are at least so many."""
    stages: list[dict[str, Any]] = [
        {"$match": {"roles.$id": role.id}},
        {"$limit": EXAMINED},
        {
            "$group": {
                "_id": None,
                "read": {"$sum": 1},
                "active": {"$sum": {"$cond": [expiry.is_active(clock.now()), 1, 0]}},
            }
        },
    ]
    found = await Session.get_motor_collection().aggregate(stages).to_list(1)
    if not found:
        return CappedCount(0)
    return CappedCount(found[0]["active"], more=found[0]["read"] == EXAMINED)


async def _remains(action: Action, affected: Collection[PydanticObjectId]) -> bool | None:
    """Return whether an active administrator is left without these users; None if none of them is
    one."""
    if action not in (Action.REVOKE, Action.DISABLE) or not affected:
        return None
    match = {**await administering(), **status.active_filter(clock.now())}
    users, ids = Account.get_motor_collection(), list(affected)
    if not await users.count_documents({**match, "_id": {"$in": ids}}, limit=1):
        return None
    others = {**match, "_id": {"$nin": ids}}
    return bool(await users.count_documents(others, limit=1, hint="role_by_created"))
