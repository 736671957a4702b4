"""Leaving, and coming back in time: what happens to an account that was closed by its owner.

`User.close` and `User.restore` are the verbs. Here is the way back for who signs in meanwhile, and
the end of those who do not.
"""

import asyncio
from datetime import timedelta

from beanie import PydanticObjectId
from pymongo import ReturnDocument

from quartapp import clock
from quartapp.activities import ACCOUNT_DELETED
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.one_time_token import Purpose, Token, TokenSpent
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.privacy import personal_data

# For so long after the sign-in the account can be opened without another one.
LASTS = timedelta(minutes=10)
# Longer than erasing may take: until then no other worker begins.
LEASE = timedelta(minutes=2)
LOOK_EVERY = 0.1


async def issue(user: User) -> str:
    """For who has just shown that the closed account is theirs: a token that opens it again."""
    return await Token.issue(PydanticObjectId(), Purpose.RETURN, user, user.email, lasts=LASTS)


async def asked_by(token: str) -> User | None:
    """Whose account the token opens; None when it is dead. Does not use it up."""
    found = await Token.usable(Purpose.RETURN, token)
    return found[1] if found and not found[1].is_active else None


async def come_back(token: str, *, by: Actor) -> User:
    """Opens the account again. Raises TokenSpent."""
    found = await Token.usable(Purpose.RETURN, token)
    if found is None:
        raise TokenSpent
    link = found[0]

    async def work(tx: Tx) -> PydanticObjectId:
        user = await link.use(tx=tx)
        if not await user.open_again(by=by.known_as(user.id, user.username), tx=tx):
            raise TokenSpent
        return user.id

    user = await User.get(await transaction(work))
    assert user is not None, "only who is closed is erased"
    return user


async def claim() -> User | None:
    """Somebody whose time is over, for the caller alone while the lease lasts."""
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
    """Returns when the person, who is due, is erased: by this process or by a worker."""
    while await User.get(user_id) is not None:
        if user := await claim():
            await erase(user)
        else:
            await asyncio.sleep(LOOK_EVERY)


async def erase(user: User) -> bool:
    """Erases a person who was claimed, and all that is held about them; whether it was this call
    that did it. What a worker that died has begun can be done again from the beginning."""
    person = await personal_data.Person.of(user)
    for holding in personal_data.HELD:
        await holding.erase(person)
    await personal_data.forget_name(user)

    async def work(tx: Tx) -> bool:
        users = User.get_motor_collection()
        mine = {"_id": user.id, "erasing_until": user.erasing_until}
        if not (await users.delete_one(mine, session=tx)).deleted_count:
            return False
        # Somebody may have told them something just now: that wrote the document which is gone.
        await personal_data.sweep(person, tx)
        posts = "removed" if user.deletes_posts else "kept"
        await Event.record(ACCOUNT_DELETED, by=NOBODY, subject=user.id, tx=tx, posts=posts)
        return True

    return await transaction(work)
