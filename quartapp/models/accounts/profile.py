"""Changes of what users say about themselves, and of their preferences."""

from __future__ import annotations

from typing import Any

from beanie import PydanticObjectId

from quartapp.db.mongo import Tx
from quartapp.models.accounts.preferences import Preferences
from quartapp.models.accounts.user import User
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor


async def change_profile(
    user_id: PydanticObjectId, *, display_name: str, about: str, by: Actor
) -> None:
    """Store what the user says about themselves, in an authorized transaction that manages the
    user. Records no event, and does nothing if there is no such user. Raises SessionOver and
    RightsChanged, and MissingPermission for another user with more permissions than the actor."""
    await _set(user_id, {"display_name": display_name, "about": about}, by)


async def change_preferences(
    user_id: PydanticObjectId, preferences: Preferences, *, by: Actor
) -> None:
    """Store all preferences of the user, in an authorized transaction that manages the user.

    Writes no barrier mark: the workers drop the user's cached sessions when the change stream
    reports the change. Records no event. Raises as `change_profile` does.
    """
    await _set(user_id, {"preferences": preferences.model_dump()}, by)


async def _set(user_id: PydanticObjectId, values: dict[str, Any], by: Actor) -> None:
    async def work(tx: Tx) -> None:
        await User.change({"_id": user_id}, {"$set": values}, tx=tx)

    await authorized_transaction(by, work, managing=user_id)
