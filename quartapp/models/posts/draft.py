"""Drafts of posts, which only their authors see."""

from datetime import datetime
from typing import Any, Self

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock
from quartapp.db.mongo import Tx
from quartapp.models.accounts.user import User
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record, new_id
from quartapp.models.base.references import user_ref

# Drafts that the list of posts shows.
SHOWN = 5


class PostDraft(Record):
    """Text that its author has not published yet.

    Its id is that of the post which it changes or, for a new post, that of the user: so there is at
    most one of each.
    """

    author: Link[User]
    title: str
    body: str
    saved_at: datetime = Field(default_factory=clock.now)
    # Each save sets another one. None in drafts of earlier releases.
    version: PydanticObjectId | None = None

    class Settings:
        name = "post_drafts"
        indexes = [IndexModel([("author.$id", 1), ("saved_at", -1)], name="of_author")]

    @classmethod
    async def save_text(
        cls, draft_id: PydanticObjectId, title: str, body: str, *, by: Actor
    ) -> None:
        """Store the draft of the actor in the place of an earlier one, in an authorized
        transaction; with both texts empty delete it. The last write wins. Does not check whose the
        post is: the route does. Raises SessionOver and RightsChanged."""

        async def work(tx: Tx) -> None:
            if not title and not body:
                await cls.erase(draft_id, tx=tx)
                return
            new = {"$set": cls.texts(title, body), "$setOnInsert": {"author": user_ref(by.user_id)}}
            await cls.get_motor_collection().update_one(
                {"_id": draft_id}, new, upsert=True, session=tx
            )

        await authorized_transaction(by, work)

    @staticmethod
    def texts(title: str, body: str) -> dict[str, Any]:
        """Return the fields of a draft with these texts that is saved now."""
        return {"title": title, "body": body, "saved_at": clock.now(), "version": new_id()}

    @classmethod
    async def latest(cls, author: PydanticObjectId) -> list[Self]:
        """Return the user's drafts that were saved last, at most SHOWN."""
        return await cls.find({"author.$id": author}, sort="-saved_at", limit=SHOWN).to_list()

    def is_new(self) -> bool:
        """Return whether this is the draft of a new post."""
        return self.id == self.author.ref.id
