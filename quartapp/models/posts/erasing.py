"""Deleting the posts and comments of a deleted account, in batches.

What erases in batches yields after each of them how many documents it has read.
"""

from collections.abc import AsyncIterator

from beanie import PydanticObjectId
from pymongo import UpdateOne

from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.user import User
from quartapp.models.base.record import AT_ONCE
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post


async def erase_posts(author: User) -> AsyncIterator[int]:
    """Delete the author's posts with all comments on them, in batches, if the author chose that;
    else do nothing.

    Posts that stay keep the id of their author, whose user document does not exist any more.
    """
    if author.deletes_posts:
        async for ids in Post.batches({"author.$id": author.id}, size=AT_ONCE):
            removed = False
            while not removed:
                async for count in Comment.delete_in_batches({"post.$id": {"$in": ids}}):
                    yield count
                removed = await _remove_posts(ids)
            yield len(ids)


async def _remove_posts(ids: list[PydanticObjectId]) -> bool:
    """Delete these posts and the comments on them, in one transaction.

    Adding a comment writes its post, so a comment added at the same time is either deleted here, or
    not stored. Returns False, without a write, if there are more than AT_ONCE comments.
    """

    async def work(tx: Tx) -> bool:
        below = await Comment.ids({"post.$id": {"$in": ids}}, limit=AT_ONCE + 1, tx=tx)
        if len(below) > AT_ONCE:
            return False
        for document, gone in ((Post, ids), (Comment, below)):
            collection = document.get_motor_collection()
            await collection.delete_many({"_id": {"$in": gone}}, session=tx)
        return True

    return await transaction(work)


async def erase_comments(author: User) -> AsyncIterator[int]:
    """Delete the author's comments, in batches, if the author chose that; else do nothing. Reduces
    the `comment_count` of their posts."""
    if author.deletes_posts:
        async for ids in Comment.batches({"author.$id": author.id}, size=AT_ONCE):
            await _remove_comments(ids)
            yield len(ids)


async def _remove_comments(ids: list[PydanticObjectId]) -> None:
    """Delete these comments and subtract them from `comment_count` of their posts, in one
    transaction.
    """

    async def work(tx: Tx) -> None:
        comments = Comment.get_motor_collection()
        group = {"$group": {"_id": "$post.$id", "count": {"$sum": 1}}}
        there = {"_id": {"$in": ids}}
        counted = await comments.aggregate([{"$match": there}, group], session=tx).to_list(None)
        taken = [
            UpdateOne({"_id": row["_id"]}, {"$inc": {"comment_count": -row["count"]}})
            for row in counted
        ]
        if taken:
            await Post.get_motor_collection().bulk_write(taken, ordered=False, session=tx)
        await comments.delete_many(there, session=tx)

    await transaction(work)
