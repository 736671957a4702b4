"""Posts."""

from datetime import datetime
from typing import Any, Self

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock
from quartapp.activities import POST_REMOVED
from quartapp.db.mongo import Tx
from quartapp.models.accounts.user import User
from quartapp.models.audit.recording import record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record, documents
from quartapp.models.base.references import COMMENTS, linked_id, user_ref
from quartapp.models.posts.draft import PostDraft
from quartapp.models.posts.words import words_of
from quartapp.security import markdown

PAGE = 20
# How many comments a transaction deletes with their post.
COMMENTS_AT_ONCE = 500


class Post(Record):
    """A post by a user. Lists are sorted by id, which ascends with time."""

    author: Link[User]
    title: str
    body: str
    # What a search looks at (see `words`). None in posts of earlier versions, until `fill_in`.
    words: list[str] | None = None
    created_at: datetime = Field(default_factory=clock.now)
    edited_at: datetime | None = None
    comment_count: int = 0

    class Settings:
        name = "posts"
        indexes = [
            IndexModel([("author.$id", 1), ("_id", -1)], name="of_author"),
            IndexModel([("words", 1), ("_id", -1)], name="by_word"),
        ]

    @property
    def author_id(self) -> PydanticObjectId:
        return linked_id(self.author)

    @property
    def excerpt(self) -> str:
        """The beginning of the body on one line of at most 200 characters, without Markdown."""
        return markdown.excerpt(self.body, 200)

    @classmethod
    async def write(cls, title: str, body: str, *, by: Actor) -> "Post":
        """Store a post by the actor and delete their draft of a new one, in an authorized
        transaction, and return the post. Does not check the texts. No notification and no audit
        event. Raises SessionOver and RightsChanged."""
        words = words_of(f"{title}\n{body}")
        post = cls(author=user_ref(by.user_id), title=title, body=body, words=words)

        async def work(tx: Tx) -> Post:
            await PostDraft.erase(by.user_id, tx=tx)
            return await post.insert(session=tx)

        return await authorized_transaction(by, work)

    @classmethod
    async def with_author(cls, post_id: PydanticObjectId) -> "Post | None":
        """Return the post with its author fetched; None if there is none. A deleted author stays a
        link."""
        found = await cls.find_with_links({"_id": post_id}, limit=1, fetch=["author"])
        return found[0] if found else None

    @classmethod
    async def page(
        cls,
        *,
        author: PydanticObjectId | None = None,
        before: PydanticObjectId | None = None,
        limit: int = PAGE,
    ) -> list[Self]:
        """Return at most `limit` posts, newest first: of one author, or of all with their
        authors fetched. `before` is the id of the last post of the page before."""
        match: dict[str, Any] = {"author.$id": author} if author else {}
        if before:
            match["_id"] = {"$lt": before}
        fetch = [] if author else ["author"]
        return await cls.find_with_links(match, sort="-_id", limit=limit, fetch=fetch)

    async def revise(self, title: str, body: str, *, by: Actor) -> bool:
        """Change title and body in the database, and set `edited_at`, also if the texts are the
        same; return False if the post was deleted.

        In an authorized transaction, which raises SessionOver and RightsChanged, and deletes the
        draft of these changes. This object keeps its old values. Does not check who may edit the
        post: the route does. No audit event, no notification.
        """
        words = words_of(f"{title}\n{body}")
        new = {"title": title, "body": body, "words": words, "edited_at": clock.now()}

        async def work(tx: Tx) -> bool:
            await PostDraft.erase(self.id, tx=tx)
            return await Post.change({"_id": self.id}, {"$set": new}, tx=tx)

        return await authorized_transaction(by, work)

    async def remove(self, *, by: Actor) -> None:
        """Delete the post, its comments and its draft. Does nothing if it was deleted already.

        In one authorized transaction, unless the post has more than COMMENTS_AT_ONCE comments: then
        other authorized transactions delete them before. What one of them raises ends the deletion;
        the post and the remaining comments stay.

        If the actor is not the author, records the event POST_REMOVED and notifies the author. The
        authors of the comments are not notified. Does not check who may delete it: the route does.
        Raises SessionOver and RightsChanged.
        """

        async def work(tx: Tx) -> bool:
            """Delete the post, or only some of its comments; return whether nothing is left."""
            comments = documents(COMMENTS)
            below = comments.find(
                {"post.$id": self.id}, {"_id": 1}, limit=COMMENTS_AT_ONCE + 1, session=tx
            )
            ids = [row["_id"] for row in await below.to_list(None)]
            last = len(ids) <= COMMENTS_AT_ONCE
            if not last:
                fewer = {"$inc": {"comment_count": -len(ids)}}
                await Post.change({"_id": self.id}, fewer, tx=tx)
            elif not await Post.erase(self.id, tx=tx):
                return True
            if last:
                await PostDraft.erase(self.id, tx=tx)
            await comments.delete_many({"_id": {"$in": ids}}, session=tx)
            if last and by.user_id != self.author_id:
                await record(POST_REMOVED, self.author_id, by=by, tx=tx, title=self.title)
            return last

        while not await authorized_transaction(by, work):
            pass
