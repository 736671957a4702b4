"""The rule that there is always an active administrator."""

from typing import Any

from beanie import PydanticObjectId

from quartapp import clock, policy
from quartapp.db.mongo import Tx
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts import role_ends, status
from quartapp.models.accounts.account import Account
from quartapp.models.base.references import DomainError
from quartapp.models.roles.role import Role

# Whether there is one, and whether there is another one.
COUNTED = 2
# The detail `why` of an event: nobody else would be left. Earlier versions stored it in words.
LAST_ADMINISTRATOR = "last_administrator"


class LastAdministrator(DomainError):
    """The change would leave no active administrator, now or when accounts or grants expire
    (`others_leave`)."""

    def __init__(self, *, others_leave: bool = False) -> None:
        expire = _(
            "The accounts or roles of all other administrators expire. Make another user an "
            "administrator first."
        )
        last = _("This is the last active administrator. Make another user an administrator first.")
        super().__init__(expire if others_leave else last)


async def active_administrators(*, tx: Tx | None = None) -> int:
    """Return how many active accounts have the role `admin`, but at most COUNTED. 0 if there is no
    such role."""
    match = {**await administering(tx), **status.active_filter(clock.now())}
    users = Account.get_motor_collection()
    return await users.count_documents(match, limit=COUNTED, session=tx)


async def count_administrators(
    tx: Tx | None, *, but: PydanticObjectId | None = None
) -> tuple[int, int]:
    """Return how many active accounts hold the role `admin`, and how many of these never expire and
    have the role without an end. (0, 0) if there are none. Counts all of them, except the user with
    the id `but`."""
    active = {**await administering(tx), **status.active_filter(clock.now())}
    ends = {"$ifNull": ["$role_ends.role", []]}
    endless = {
        "$and": [
            {"$eq": [{"$ifNull": ["$closes_at", None]}, None]},
            {"$not": {"$in": [active["roles.$id"], ends]}},
        ]
    }
    if but:
        active["_id"] = {"$ne": but}
    counts = {
        "_id": None,
        "now": {"$sum": 1},
        "lasting": {"$sum": {"$cond": [endless, 1, 0]}},
    }
    users = Account.get_motor_collection()
    found = users.aggregate([{"$match": active}, {"$group": counts}], session=tx)
    row = next(iter(await found.to_list(None)), {"now": 0, "lasting": 0})
    return row["now"], row["lasting"]


async def require_an_administrator(before: tuple[int, int], tx: Tx) -> None:
    """Raise LastAdministrator if the transaction has removed the last administrator.

    `before` is the result of `count_administrators` before the change. There must still be an
    active administrator if there was one, and one who never stops being one if there was one.
    Sends no query if there was none.
    """
    if before[0]:
        for refusal in _refusals_of_change(before, await count_administrators(tx)):
            raise refusal


async def refusals_to_lose(
    user_id: PydanticObjectId, *, when_expired: bool = False
) -> list[LastAdministrator]:
    """Return LastAdministrator if the last administrator would be removed if this user were no
    longer one now or, `when_expired`, at a later time."""
    before = await count_administrators(None)
    now, lasting = await count_administrators(None, but=user_id)
    return _refusals_of_change(before, (before[0] if when_expired else now, lasting))


def _refusals_of_change(before: tuple[int, int], after: tuple[int, int]) -> list[LastAdministrator]:
    """Return LastAdministrator if a change with these results of `count_administrators` has removed
    the last administrator: see `require_an_administrator`."""
    had, lasting = before
    now, lasting_now = after
    if had and not now:
        return [LastAdministrator()]
    if had and lasting and not lasting_now:
        return [LastAdministrator(others_leave=had > 1)]
    return []


async def administering(tx: Tx | None = None) -> dict[str, Any]:
    """Return the filter for accounts that hold the role `admin`, active or not. It matches no
    account with a role if that role does not exist. Reads the role from the database."""
    admin = await Role.find_one({"name": policy.ADMIN}, session=tx)
    if admin is None:
        return {"roles.$id": None}
    return role_ends.holding_filter(admin.id, clock.now())
