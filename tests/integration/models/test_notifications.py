from __future__ import annotations

from quartapp.db.mongo import Database
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post
from tests.integration.models.helpers import acting, not_none, register, reloaded, role


async def unread(user: User) -> list[int]:
    return [notice.seq for notice in await Notice.after(user.id, 0) if notice.read_at is None]


async def test_reading_notifications_leaves_newer_ones_unread(db: Database) -> None:
    ada, bob = await register("ada", "member"), await register("bob", "member")
    await ada.grant(await role("moderator"), by=SYSTEM)
    seen = await reloaded(ada)
    await ada.grant(await role("admin"), by=SYSTEM)
    await seen.read_notices()
    assert await unread(ada) == [3]
    assert (await reloaded(ada)).notices_read == 2
    assert await unread(bob) == [1]
    first = (await Notice.after(ada.id, 0))[0].read_at

    await (await reloaded(ada)).read_notices()
    await seen.read_notices()
    assert await unread(ada) == []
    assert (await reloaded(ada)).notices_read == 3
    assert (await Notice.after(ada.id, 0))[0].read_at == first, "the time of reading is kept"


async def test_authors_are_notified_of_actions_by_others_only(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")

    async def texts() -> list[str]:
        return [notice.text for notice in await Notice.after(ada.id, 1)]

    post = await Post.write("On engines", "…", by=acting(ada))
    mine = not_none(await Comment.write(post, "mine", by=acting(ada)))
    await mine.remove(by=acting(ada))
    assert await texts() == []
    theirs = not_none(await Comment.write(post, "theirs", by=acting(root)))
    again_mine = not_none(await Comment.write(post, "mine", by=acting(ada)))
    await theirs.remove(by=acting(root))
    await again_mine.remove(by=acting(root))
    await again_mine.remove(by=acting(root))
    await post.remove(by=acting(root))
    await post.remove(by=acting(root))
    assert await texts() == [
        "root commented on “On engines”.",
        "root removed your comment on “On engines”.",
        "root removed your post “On engines”.",
    ]


async def test_deleting_a_post_deletes_its_comments(db: Database) -> None:
    ada = await register("ada", "member")
    gone, stays = [await Post.write(title, "…", by=acting(ada)) for title in ("gone", "stays")]
    for post in (gone, stays):
        await Comment.write(post, "…", by=acting(ada))
    await gone.remove(by=acting(ada))
    assert await Comment.page(gone.id) == []
    assert len(await Comment.page(stays.id)) == 1
    assert await Comment.write(gone, "too late", by=acting(ada)) is None
    assert not await gone.revise("too", "late", by=acting(ada))
    assert await stays.revise("still", "here", by=acting(ada))
    found = not_none(await Post.with_author(stays.id))
    assert (found.title, found.edited_at is None) == ("still", False)
