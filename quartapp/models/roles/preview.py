"""What an edit of a role would change for the users who hold it, before it is made."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from quartapp.models.base.counting import CappedCount
from quartapp.models.base.record import documents
from quartapp.models.base.references import USERS
from quartapp.models.roles.role import COUNTED_HOLDERS, Role
from quartapp.policy import Permission


@dataclass(frozen=True, slots=True)
class RolePreview:
    """The effect of an edit of the permissions of a role, as the database is now.

    `holders` is the number of users who hold the role, counted up to COUNTED_HOLDERS.
    `losers` tells of each removed permission how many of them would lose it, because no other role
    of theirs includes it; it is empty if there are more than COUNTED_HOLDERS.
    """

    added: list[Permission]
    removed: list[Permission]
    holders: CappedCount
    losers: dict[Permission, int]


async def preview(role: Role, permissions: Collection[Permission]) -> RolePreview:
    """Return what would change if these were the permissions of the role. Changes nothing.

    Compares with the permissions of `role`, as the caller has read it. Stored permissions that this
    version does not know are left out. Reads at most COUNTED_HOLDERS users for each removed
    permission, at the same time for all. Users whose grant has expired count until that is
    recorded.
    """
    wanted, known = set(permissions), set(role.known)
    added, removed = sorted(wanted - known), sorted(known - wanted)
    roles = await Role.everyone()
    holders = (await Role.holders([role]))[role.id]
    losers: dict[Permission, int] = {}
    if not holders.more:
        counts = await asyncio.gather(*(_count_losers(role, each, roles) for each in removed))
        losers = dict(zip(removed, counts, strict=True))
    return RolePreview(added, removed, holders, losers)


async def _count_losers(role: Role, permission: Permission, roles: Collection[Role]) -> int:
    """Return how many users, among the first COUNTED_HOLDERS who hold the role, hold no other role
    with the permission."""
    others = [each.id for each in roles if permission in each.known and each.id != role.id]
    steps = [
        {"$match": {"roles.$id": role.id}},
        {"$limit": COUNTED_HOLDERS},
        {"$match": {"roles.$id": {"$nin": others}}},
        {"$count": "users"},
    ]
    return sum([row["users"] async for row in documents(USERS).aggregate(steps)])
