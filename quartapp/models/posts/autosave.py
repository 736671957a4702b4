"""Drafts of posts that are saved while their author types."""

from beanie import PydanticObjectId

from quartapp.db.mongo import Tx
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import first_id_at, new_id
from quartapp.models.base.references import user_ref
from quartapp.models.posts.draft import PostDraft
from quartapp.models.posts.post import Post

# A page without a draft is known by an id of the time at which it was rendered.
page_id = new_id


async def autosave(
    draft_id: PydanticObjectId,
    title: str,
    body: str,
    *,
    version: PydanticObjectId | None,
    opened: PydanticObjectId | None,
    by: Actor,
) -> bool:
    """Store the draft of the actor unless something newer would be lost or come back, and return
    whether it was stored.

    `version` is that of the draft which the page shows: the stored draft must still have it. A page
    without a draft gives `opened`, its `page_id`: no draft may be stored, and the post not have
    been published or changed since then.

    In an authorized transaction, which raises SessionOver and RightsChanged. Two of one session run
    one after the other, so a save that arrives after its post was published finds the post. Does
    not check whose the post is: the route does.
    """

    async def work(tx: Tx) -> bool:
        drafts = PostDraft.get_motor_collection()
        texts = PostDraft.texts(title, body)
        if opened is None:
            return await PostDraft.change(
                {"_id": draft_id, "author.$id": by.user_id, "version": version},
                {"$set": texts},
                tx=tx,
            )
        if await drafts.find_one({"_id": draft_id}, {"_id": 1}, session=tx):
            return False
        if await _published_since(opened, draft_id, by.user_id, tx):
            return False
        await drafts.insert_one(
            {"_id": draft_id, "author": user_ref(by.user_id), **texts}, session=tx
        )
        return True

    return await authorized_transaction(by, work)


async def _published_since(
    opened: PydanticObjectId, draft_id: PydanticObjectId, author: PydanticObjectId | None, tx: Tx
) -> bool:
    """Return whether the author has published a post since then or, for a draft of changes, whether
    the post was changed or deleted."""
    posts = Post.get_motor_collection()
    if draft_id == author:
        newer = {"author.$id": author, "_id": {"$gt": opened}}
        return await posts.find_one(newer, {"_id": 1}, session=tx) is not None
    post = await posts.find_one({"_id": draft_id}, {"edited_at": 1}, session=tx)
    if post is None:
        return True
    edited_at = post.get("edited_at")
    return edited_at is not None and first_id_at(edited_at) > opened
