"""What follows after an account was deactivated or scheduled for deletion.

`User.deactivate` and `User.restore` start and cancel it. This module lets a user restore the
account after a sign-in, and erases accounts when their time has come.
"""

import asyncio
from datetime import timedelta
from typing import Any

from beanie import PydanticObjectId
from pymongo import ReturnDocument

from quartapp import clock
from quartapp.activities import ACCOUNT_DELETED
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.one_time_token import Purpose, Token, TokenSpent
from quartapp.models.accounts.user import User
from quartapp.models.audit import erasing
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.privacy import personal_data
from quartapp.models.privacy.person import Person

# How long after the sign-in the account can be restored without signing in again.
LASTS = timedelta(minutes=10)
# Longer than erasing can take: until then no other worker claims the account.
LEASE = timedelta(minutes=2)
LOOK_EVERY = 0.1


class NotErased(Exception):
    """More was added since the collections were erased than one transaction deletes."""


async def issue(user: User) -> str:
    """Store a token with which the user can restore the account, and return it. It lasts ten
    minutes. Earlier ones stay valid.

    For a user who has just signed in to their deactivated account, which this does not check.
    """
    return await Token.issue(PydanticObjectId(), Purpose.RETURN, user, user.email, lasts=LASTS)


async def user_to_restore(token: str) -> User | None:
    """Return the user whose account the token can restore; None if the token is not valid any more,
    or the account is active. Reads the database, and does not use the token up."""
    found = await Token.usable(Purpose.RETURN, token)
    return found[1] if found and not found[1].is_active else None


async def restore_with_token(token: str, *, by: Actor) -> User:
    """Restore the account of the token, and return its user as stored then.

    In one transaction, uses the token up and makes the writes of `User.restore_in_transaction`: the
    account is active again and its deletion is cancelled, the user is emailed and the event
    ACCOUNT_RESTORED is recorded, with this user as its actor (`Actor.known_as`). Opens no session
    and inserts no barrier mark. Raises TokenSpent, without a write, if the token is not valid, or
    if the account is active or cannot be restored any more.
    """
    found = await Token.usable(Purpose.RETURN, token)
    if found is None:
        raise TokenSpent
    link = found[0]

    async def work(tx: Tx) -> PydanticObjectId:
        user = await link.use(tx=tx)
        if not await user.restore_in_transaction(by=by.known_as(user.id, user.username), tx=tx):
            raise TokenSpent
        return user.id

    user = await User.get(await transaction(work))
    assert user is not None, "only who is closed is erased"
    return user


async def claim() -> User | None:
    """Claim the account that has been due for deletion for longest, and return it; None if none is
    due.

    Sets `erasing_until` to two minutes from now. Until then no other worker claims it.
    """
    now = clock.now()
    free = [{"erasing_until": None}, {"erasing_until": {"$lte": now}}]
    found = await User.get_motor_collection().find_one_and_update(
        {"deletes_at": {"$lte": now}, "$or": free},
        {"$set": {"erasing_until": now + LEASE}},
        sort=[("deletes_at", 1)],
        return_document=ReturnDocument.AFTER,
    )
    return User.model_validate(found) if found else None


async def erase_now(user_id: PydanticObjectId) -> None:
    """Wait until the account, which must be due for deletion, is erased, by this process or a
    worker. Does not return if the account never becomes due.

    Erases every account that it can claim, also others that are due; while it can claim none, looks
    again every 0.1 seconds.
    """
    while await User.get(user_id) is not None:
        if user := await claim():
            await erase(user)
        else:
            await asyncio.sleep(LOOK_EVERY)


async def erase(user: User) -> bool:
    """Erase the claimed account and all personal data about it; return whether this call deleted
    it.

    Erases the data in many small writes (`personal_data.erase`), and meanwhile prolongs the claim.
    The user document goes last: one transaction deletes it, deletes what was added in the meantime
    (`personal_data.sweep`) and records the event ACCOUNT_DELETED. Returns False, without a further
    write, if another worker has claimed or deleted the account since. After a crash, another
    worker can claim the account when the claim has expired. Its `erase` deletes what is left.
    """
    person = await Person.of(user)
    while True:
        async for _ in personal_data.erase(person):
            if not await _keep_claim(user):
                return False
        deleted = await _delete(person)
        if deleted is not None:
            return deleted


async def _keep_claim(user: User) -> bool:
    """Prolong the claim if half of its time is over; return False if it is lost.

    Sets `erasing_until` to LEASE from now, also in this object.
    """
    now = clock.now()
    if user.erasing_until is not None and user.erasing_until - now > LEASE / 2:
        return True
    until = now + LEASE
    mine = {"_id": user.id, "erasing_until": user.erasing_until}
    prolonged = await User.change(mine, {"$set": {"erasing_until": until}})
    if prolonged:
        user.erasing_until = until
    return prolonged


async def _delete(person: Person) -> bool | None:
    """Delete the user document of the person, and record the event ACCOUNT_DELETED, in one
    transaction; return True.

    Returns False, without a write, if another worker has claimed or deleted the account; None,
    without a write, if so much was added in the meantime that it must be erased first.
    """
    user = person.user

    async def work(tx: Tx) -> bool:
        mine = {"_id": user.id, "erasing_until": user.erasing_until}
        if not (await User.get_motor_collection().delete_one(mine, session=tx)).deleted_count:
            return False
        # A notification may have been stored a moment ago. Storing one writes the user document, so
        # none can follow after this transaction has deleted it.
        if not await personal_data.sweep(person, tx):
            raise NotErased
        details: dict[str, Any] = {"posts": "removed" if user.deletes_posts else "kept"}
        erased = await erasing.erased_without_subject(user.id, tx)
        if erased is not None:
            details["erased"] = erased
        await Event.record(ACCOUNT_DELETED, by=SYSTEM, subject=user.id, tx=tx, **details)
        return True

    try:
        return await transaction(work)
    except NotErased:
        return None
