from __future__ import annotations

from quartapp.db.mongo import Database
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import NOBODY
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post
from tests.models.stories import acting, again, register, role, some


async def unread(user: User) -> list[int]:
    return [notice.seq for notice in await Notice.after(user.id, 0) if notice.read_at is None]


async def test_what_has_been_seen_is_read_and_what_came_since_is_not(db: Database) -> None:
    ada, bob = await register("ada", "member"), await register("bob", "member")
    await ada.grant(await role("moderator"), by=NOBODY)
    seen = await again(ada)
    await ada.grant(await role("admin"), by=NOBODY)
    await seen.read_notices()
    assert await unread(ada) == [3]
    assert (await again(ada)).notices_read == 2
    assert await unread(bob) == [1]
    first = (await Notice.after(ada.id, 0))[0].read_at

    await (await again(ada)).read_notices()
    await seen.read_notices()
    assert await unread(ada) == []
    assert (await again(ada)).notices_read == 3
    assert (await Notice.after(ada.id, 0))[0].read_at == first, "read once"


async def test_an_author_hears_of_what_others_do_and_not_of_their_own(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")

    async def heard() -> list[str]:
        return [notice.text for notice in await Notice.after(ada.id, 1)]

    post = await Post.write("On engines", "…", by=acting(ada))
    mine = some(await Comment.write(post, "mine", by=acting(ada)))
    await mine.remove(by=acting(ada))
    assert await heard() == []
    theirs = some(await Comment.write(post, "theirs", by=acting(root)))
    again_mine = some(await Comment.write(post, "mine", by=acting(ada)))
    await theirs.remove(by=acting(root))
    await again_mine.remove(by=acting(root))
    await again_mine.remove(by=acting(root))
    await post.remove(by=acting(root))
    await post.remove(by=acting(root))
    assert await heard() == [
        "root commented on “On engines”.",
        "root removed your comment on “On engines”.",
        "root removed your post “On engines”.",
    ]


async def test_a_post_takes_what_was_said_below_it_along(db: Database) -> None:
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
    found = some(await Post.with_author(stays.id))
    assert (found.title, found.edited_at is None) == ("still", False)
