"""What remains of a deleted role, and how it is taken from the users who held it.

Deleting a role writes a `RoleDeletion` and none of the users' documents. From then on all sessions
of these users are over by the session rule. The role is taken from each user later, alone or
together with others: by a background job (`jobs.role_deletions`), or when the user signs in.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Self

from beanie import PydanticObjectId
from pymongo import IndexModel, ReturnDocument

from quartapp import clock
from quartapp.activities import DELETED_USER, ROLE_DELETED
from quartapp.db import mongo
from quartapp.db.mongo import Tx, transaction
from quartapp.models.base.record import Record, documents
from quartapp.models.base.references import (
    EVENTS,
    ROLE_DELETIONS,
    ROLES,
    USERS,
    EventRef,
    UserRef,
    linked_id,
    ref,
    role_ref,
    user_ref,
)
from quartapp.models.notifications.notice import notify_all
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session, end_fields

# How many of the events about many users a user document lists.
COMMON_EVENTS = 100
# At most this many users lose the role in one transaction, and sessions are ended in one update.
BATCH = 100
# How long a job keeps its claim without renewing it. It renews the claim with each batch.
CLAIM = timedelta(seconds=15)
# As long as the events of the audit log.
KEPT = timedelta(days=400)
INCOMPLETE = {"settled_at": None, "claimed_until": None}


class RoleDeletion(Record):
    """The deletion of a role, under the role's id.

    `name` and `version` are those that the role had, `by` is the user who deleted it, and `event`
    the audit event. If another program has deleted the role, there is no event, and name and
    version are unknown: then the sessions that list the role end, and the users keep their links.

    The deletion is complete, and `settled_at` is set, when no user has a link to the role and every
    session that lists the role is marked as ended. Until `claimed_until` one worker works on it.
    """

    name: str = ""
    version: int = 0
    by: UserRef | None = None
    at: datetime
    event: EventRef | None = None
    settled_at: datetime | None = None
    claimed_until: datetime | None = None

    class Settings:
        name = ROLE_DELETIONS
        indexes = [
            IndexModel(
                [("settled_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            )
        ]

    @classmethod
    async def of_roles(
        cls, role_ids: Collection[PydanticObjectId], *, tx: Tx | None = None
    ) -> list[Self]:
        """Return the deletions of those of these roles that an operation of the application has
        deleted, so not those that `store_external` has stored.

        Complete ones too. Without ids, makes no query.
        """
        if not role_ids:
            return []
        collection = cls.get_motor_collection()
        if tx is None:
            collection = collection.with_options(read_concern=mongo.current_read_concern())
        match = {"_id": {"$in": list(role_ids)}, "event": {"$ne": None}}
        found = await collection.find(match, session=tx).to_list(None)
        return [cls.model_validate(row) for row in found]

    @classmethod
    async def store(
        cls,
        role_id: PydanticObjectId,
        *,
        name: str,
        version: int,
        by: PydanticObjectId | None,
        at: datetime,
        event: PydanticObjectId,
        tx: Tx,
    ) -> None:
        """Store the deletion of a role in the caller's transaction, which deletes the role.

        Replaces an earlier one, of a role that was restored under the same id.
        """
        links = {"by": user_ref(by), "event": ref(EVENTS, event)}
        fields = {"name": name, "version": version, "at": at, **links, **INCOMPLETE}
        collection = cls.get_motor_collection()
        await collection.replace_one({"_id": role_id}, fields, upsert=True, session=tx)

    @classmethod
    async def store_external(cls, role_id: PydanticObjectId) -> None:
        """Store that another program has deleted the role: without a name, a version, an actor and
        an event. Does nothing if a deletion of the role is stored."""
        fields = {"name": "", "version": 0, "at": clock.now(), "by": None, "event": None}
        await cls.get_motor_collection().update_one(
            {"_id": role_id}, {"$setOnInsert": {**fields, **INCOMPLETE}}, upsert=True
        )

    @property
    def by_id(self) -> PydanticObjectId | None:
        """The id of the user who deleted the role; None for the command line and other programs."""
        return linked_id(self.by) if self.by else None

    @property
    def event_id(self) -> PydanticObjectId | None:
        """The id of the audit event; None if another program has deleted the role."""
        return linked_id(self.event) if self.event else None

    @property
    def end_fields(self) -> dict[str, Any]:
        """The fields that mark a session as ended by this deletion."""
        return end_fields(Reason.ROLE_DELETED, by=self.by_id, event=self.event_id, at=self.at)

    # ---- taking the role from its users

    async def remove_role_from(self, user_ids: Collection[PydanticObjectId], tx: Tx) -> None:
        """Take the role from those of these users who have it, in the caller's transaction.

        For each user who still has a link to the role: removes the link, raises `authz_version` by
        more than the role's version, marks all sessions as ended, lists the event in
        `common_events` (which keeps the last COMMON_EVENTS), and stores the notification. Does
        nothing for the others, so it can be repeated. Emails those who have chosen so; inserts no
        barrier mark.

        Only for a deletion with an event: users keep a role that another program has deleted.
        """
        users = documents(USERS)
        match = {"_id": {"$in": list(user_ids)}, "roles.$id": self.id}
        ids = [row["_id"] for row in await users.find(match, {"_id": 1}, session=tx).to_list(None)]
        if not ids:
            return
        # The sessions come first, because workers read the changes in this order. When they read
        # the change of a user, they need not check sessions that have ended already.
        theirs = {"user.$id": {"$in": ids}, "ended_at": None}
        await Session.change_all(theirs, {"$set": self.end_fields}, tx=tx)
        await users.update_many(
            {"_id": {"$in": ids}},
            {
                "$pull": {"roles": role_ref(self.id), "role_ends": {"role": self.id}},
                "$inc": {"authz_version": self.version + 1},
                "$set": {"authz_by": user_ref(self.by_id), "authz_at": self.at},
                "$push": {"common_events": {"$each": [self.event_id], "$slice": -COMMON_EVENTS}},
            },
            session=tx,
        )
        await notify_all(ids, ROLE_DELETED, tx, by=await self._by_name(tx), role=self.name)

    async def _by_name(self, tx: Tx) -> str | None:
        """Return the name of the user who deleted the role; None if that was the command line.

        A user who is being erased, or was, is not named any more.
        """
        if self.by is None:
            return None
        user = await documents(USERS).find_one({"_id": self.by_id}, session=tx)
        return user["username"] if user and not user.get("erasing_until") else DELETED_USER

    async def remove_role_from_batch(self) -> bool:
        """Take the role from up to BATCH users who have a link to it (`remove_role_from`), in one
        transaction. Return False if no user had one."""
        found = documents(USERS).find({"roles.$id": self.id}, {"_id": 1}, limit=BATCH)
        ids = [row["_id"] for row in await found.to_list(None)]
        if ids:
            await transaction(lambda tx: self.remove_role_from(ids, tx))
        return bool(ids)

    async def end_sessions(self) -> bool:
        """Mark the sessions that list the role as ended, BATCH of them at a time, and renew the
        claim after each update. Return False, with the rest unmarked, if another worker has claimed
        the deletion.

        `remove_role_from` has marked most of them before. Inserts no barrier mark.
        """
        async for ids in Session.batches({"roles.$id": self.id, "ended_at": None}, size=BATCH):
            match = {"_id": {"$in": ids}, "ended_at": None}
            await Session.change_all(match, {"$set": self.end_fields})
            if not await self.renew_claim():
                return False
        return True

    # ---- the job

    @classmethod
    async def claim(cls) -> Self | None:
        """Claim a deletion that is not complete, and return it; None if there is none, or other
        workers have claimed all.

        Sets `claimed_until` to CLAIM from now. After that time another worker can claim it, so that
        a deletion whose worker stops is completed by another.
        """
        now = clock.now()
        found = await cls.get_motor_collection().find_one_and_update(
            {
                "settled_at": None,
                "$or": [{"claimed_until": None}, {"claimed_until": {"$lte": now}}],
            },
            {"$set": {"claimed_until": now + CLAIM}},
            return_document=ReturnDocument.AFTER,
        )
        return cls.model_validate(found) if found else None

    async def renew_claim(self) -> bool:
        """Extend the claim to CLAIM from now, also in this object. Return False if another worker
        has claimed or completed the deletion."""
        until = clock.now() + CLAIM
        mine = {"_id": self.id, "settled_at": None, "claimed_until": self.claimed_until}
        if until != self.claimed_until and not await self.change(
            mine, {"$set": {"claimed_until": until}}
        ):
            return False
        self.claimed_until = until
        return True

    async def mark_complete(self) -> None:
        """Set `settled_at`, whoever has claimed the deletion. No user can get a link to the role
        any more: granting it writes the role's document, as its deletion did."""
        await self.change({"_id": self.id}, {"$set": {"settled_at": clock.now()}})

    async def is_undone(self) -> bool:
        """Return whether another program has restored the role under the same id."""
        return await documents(ROLES).find_one({"_id": self.id}, {"_id": 1}) is not None
