"""The rule that there is always an active administrator."""

from typing import Any

from quartapp import clock, policy
from quartapp.db.mongo import Tx
from quartapp.models.accounts import status
from quartapp.models.accounts.account import Account
from quartapp.models.base.references import DomainError
from quartapp.models.roles.role import Role

LAST = "This is the last active administrator"


class LastAdministrator(DomainError):
    """The change would leave nobody in charge, now or on a day to come."""

    def __init__(self, *, others_leave: bool = False) -> None:
        only = "The accounts of all other administrators expire" if others_leave else LAST
        super().__init__(f"{only}. Make another user an administrator first.")


async def active_administrators(*, tx: Tx | None = None, lasting: bool = False) -> int:
    """How many people with an open account hold the role that may do everything: until their
    last day is over, if they have one; only those who have none if they are to be `lasting`."""
    return await Account.find(
        {**await administering(tx), **status.active_filter(clock.now(), lasting=lasting)},
        session=tx,
    ).count()


async def count_administrators(tx: Tx) -> tuple[int, int]:
    """How many are active, and how many of those have no last day."""
    now = await active_administrators(tx=tx)
    return now, await active_administrators(tx=tx, lasting=True)


async def require_an_administrator(before: tuple[int, int], tx: Tx) -> None:
    """Where there was one, there must be one; and where one was to stay, one must be to stay, or
    the day would come that sees the last one go. Raises LastAdministrator."""
    had, lasting = before
    now, lasting_now = await count_administrators(tx)
    if had and not now:
        raise LastAdministrator
    if lasting and not lasting_now:
        raise LastAdministrator(others_leave=had > 1)


async def administering(tx: Tx | None = None) -> dict[str, Any]:
    """The filter for whoever holds the role that may do everything, disabled or not."""
    admin = await Role.find_one({"name": policy.ADMIN}, session=tx)
    return {"roles.$id": admin.id if admin else None}
