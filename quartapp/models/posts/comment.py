"""Comments on posts."""

from datetime import datetime
from typing import Any, Self

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock
from quartapp.activities import COMMENT_ADDED, COMMENT_REMOVED
from quartapp.db.mongo import Tx
from quartapp.models.accounts.user import User
from quartapp.models.audit.recording import inform, record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import POSTS, linked_id, ref, user_ref
from quartapp.models.posts.post import Post

PAGE = 50


class Comment(Record):
    """A comment by a user on a post."""

    author: Link[User]
    post: Link[Post]
    body: str
    created_at: datetime = Field(default_factory=clock.now)

    class Settings:
        name = "comments"
        indexes = [
            IndexModel([("post.$id", 1), ("_id", 1)], name="on_post"),
            IndexModel([("author.$id", 1), ("_id", -1)], name="of_author"),
        ]

    @property
    def author_id(self) -> PydanticObjectId:
        return linked_id(self.author)

    @property
    def post_id(self) -> PydanticObjectId:
        return linked_id(self.post)

    @classmethod
    async def write(cls, post: Post, body: str, *, by: Actor) -> "Comment | None":
        """Add a comment by the actor to the post, in an authorized transaction; return it, or None
        if the post was deleted.

        Increments the post's `comment_count`, and notifies the author of the post unless that is
        the actor. The audit log has no entry. Raises SessionOver or RightsChanged if the actor's
        session has ended or has lost a permission.
        """
        comment = cls(author=user_ref(by.user_id), post=ref(POSTS, post.id), body=body)

        async def work(tx: Tx) -> bool:
            counted = await Post.change({"_id": post.id}, {"$inc": {"comment_count": 1}}, tx=tx)
            if not counted:
                return False
            await comment.insert(session=tx)
            if by.user_id != post.author_id:
                await inform(
                    COMMENT_ADDED, post.author_id, by=by, tx=tx, title=post.title, post=str(post.id)
                )
            return True

        return comment if await authorized_transaction(by, work) else None

    @classmethod
    async def page(
        cls, post_id: PydanticObjectId, *, after: PydanticObjectId | None = None, limit: int = PAGE
    ) -> list[Self]:
        """Return at most `limit` of the post's comments, oldest first, with their authors fetched.
        `after` is the id of the last comment of the page before."""
        match: dict[str, Any] = {"post.$id": post_id}
        if after:
            match["_id"] = {"$gt": after}
        return await cls.find_with_links(match, sort="_id", limit=limit, fetch=["author"])

    async def remove(self, *, by: Actor) -> None:
        """Delete the comment, in an authorized transaction. Does nothing if it was deleted already.

        Decrements the post's `comment_count`. If the actor is not the author, records the event
        COMMENT_REMOVED and notifies the author. Does not check who may delete it: the route does.
        Raises SessionOver and RightsChanged.
        """

        async def work(tx: Tx) -> None:
            if not await Comment.erase(self.id, tx=tx):
                return
            await Post.change({"_id": self.post_id}, {"$inc": {"comment_count": -1}}, tx=tx)
            if by.user_id == self.author_id:
                return
            post = await Post.get(self.post_id, session=tx)
            # The title is erased with the account of its author, so that is stored as well.
            details: dict[str, Any] = {"title": post.title if post else ""}
            if post:
                details["author"] = post.author_id
            await record(COMMENT_REMOVED, self.author_id, by=by, tx=tx, **details)

        await authorized_transaction(by, work)
