"""An account with thousands of documents is exported and erased in batches, and resumably."""

from __future__ import annotations

import io
import tracemalloc
from datetime import timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from quartapp import clock
from quartapp.activities import POST_REMOVED, SIGNED_IN
from quartapp.db.mongo import Database
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.record import AT_ONCE, BATCH, new_id
from quartapp.models.base.references import ref, user_ref
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts import erasing, post
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post
from quartapp.models.privacy import account_deletion, personal_data
from quartapp.models.privacy.person import Person
from quartapp.routes.privacy import export
from tests.integration.models.helpers import acting, not_none, register, reloaded

MANY = 1300


@pytest.fixture
async def ada(db: Database) -> User:
    """Return a user with many posts, comments, events and notifications, who is to be deleted."""
    ada, bob = await register("ada"), await register("bob")
    now = clock.now()
    mine, others = user_ref(ada.id), user_ref(bob.id)
    posts = [new_id() for _ in range(MANY)]
    other = await Post.write("Bob's post", "…", by=acting(bob))
    rows: dict[str, list[dict[str, Any]]] = {
        "posts": [
            {"_id": key, "author": mine, "title": "A post", "body": "…", "created_at": now}
            for key in posts
        ],
        # Hers below the post of another user, and all of his below her first post.
        "comments": [
            {"author": author, "post": ref("posts", key), "body": "…", "created_at": now}
            for author, key in ((mine, other.id), (others, posts[0]))
            for _ in range(MANY)
        ],
        "events": [
            {
                "actor": mine,
                "subject": mine,
                "verb": SIGNED_IN.audit_name,
                "at": now,
                "ip": "192.0.2.77",
                "details": {"device": "Canary"},
            }
            for _ in range(MANY)
        ],
        "notices": [
            {"user": mine, "seq": number, "kind": "role.granted", "data": {}, "created_at": now}
            for number in range(2, MANY)
        ],
    }
    for name, documents in rows.items():
        await db[name].insert_many(documents)
    await db["posts"].update_one({"_id": other.id}, {"$set": {"comment_count": MANY}})
    await ada.deactivate(by=acting(ada), deletes_at=now, with_posts=True)
    return ada


async def counts(ada: User) -> dict[str, int]:
    """Return how many documents with personal data of the user are left."""
    return {
        "posts": await Post.find({"author.$id": ada.id}).count(),
        "comments": await Comment.find({}).count(),
        "notices": await Notice.find({"user.$id": ada.id}).count(),
        "events": await Event.find({"ip": "192.0.2.77"}).count(),
        "details": await Event.find({"details.device": "Canary"}).count(),
    }


class Crash(Exception):
    pass


# After each number of batches, another collection is being erased.
@pytest.mark.parametrize("batches", [2, 5, 12, 24, 38])
async def test_an_erasure_goes_on_where_a_crashed_one_stopped(
    ada: User, db: Database, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    keep_claim, calls = account_deletion._keep_claim, 0

    async def crash(user: User) -> bool:
        nonlocal calls
        calls += 1
        if calls == batches:
            raise Crash
        return await keep_claim(user)

    monkeypatch.setattr(account_deletion, "_keep_claim", crash)
    before = await counts(ada)
    with pytest.raises(Crash):
        await account_deletion.erase(not_none(await account_deletion.claim()))
    between = await counts(ada)
    assert 0 < sum(between.values()) < sum(before.values())
    assert await User.get(ada.id), "the user goes last"
    assert await account_deletion.claim() is None, "the claim has not expired"
    over = {"$set": {"erasing_until": clock.now() - timedelta(seconds=1)}}
    assert await User.change({"_id": ada.id}, over)
    assert await account_deletion.erase(not_none(await account_deletion.claim()))
    assert sum((await counts(ada)).values()) == 0
    assert await User.get(ada.id) is None
    assert not_none(await Post.find_one({})).comment_count == 0


async def test_an_erasure_writes_few_documents_in_each_transaction(
    ada: User, client: AsyncMongoClient[Any]
) -> None:
    oplog = client["local"]["oplog.rs"]
    last = not_none(await oplog.find_one({}, sort=[("$natural", -1)]))
    assert await account_deletion.erase(not_none(await account_deletion.claim()))
    transactions = oplog.find({"ts": {"$gt": last["ts"]}, "o.applyOps": {"$exists": True}})
    sizes = [len(each["o"]["applyOps"]) async for each in transactions]
    assert len(sizes) > MANY / AT_ONCE
    assert max(sizes) <= 2 * AT_ONCE


async def test_comments_added_during_the_erasure_are_deleted_in_batches(
    ada: User, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_posts, sent = erasing._remove_posts, 0

    async def late(ids: list[Any]) -> bool:
        nonlocal sent
        if not sent:
            sent = AT_ONCE + 1
            comment = {"author": user_ref(ada.id), "post": ref("posts", ids[0])}
            await db["comments"].insert_many([dict(comment) for _ in range(sent)])
            assert not await remove_posts(ids)
            assert await Comment.find({"post.$id": ids[0]}).count() == sent
        return await remove_posts(ids)

    monkeypatch.setattr(erasing, "_remove_posts", late)
    assert await account_deletion.erase(not_none(await account_deletion.claim()))
    assert sum((await counts(ada)).values()) == 0


async def test_notifications_added_during_the_erasure_are_deleted_in_batches(
    ada: User, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, answers = account_deletion._delete, list[bool | None]()

    async def late(person: Person) -> bool | None:
        if not answers:
            notices = [
                {"user": user_ref(ada.id), "seq": -number, "kind": "role.granted"}
                for number in range(AT_ONCE + 1)
            ]
            await db["notices"].insert_many(notices)
        answers.append(await delete(person))
        return answers[-1]

    monkeypatch.setattr(account_deletion, "_delete", late)
    assert await account_deletion.erase(not_none(await account_deletion.claim()))
    assert answers == [None, True]
    assert sum((await counts(ada)).values()) == 0


async def test_a_long_erasure_prolongs_its_claim(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = not_none(await account_deletion.claim())
    claimed = user.erasing_until
    # From here on, half of the time of the claim is over.
    monkeypatch.setattr(account_deletion, "LEASE", timedelta(hours=1))
    sweep, stored = personal_data.sweep, []

    async def look(person: Person, tx: Any) -> bool:
        stored.append((await reloaded(ada)).erasing_until)
        return await sweep(person, tx)

    monkeypatch.setattr(personal_data, "sweep", look)
    assert await account_deletion.erase(user)
    assert stored[0] > not_none(claimed) + timedelta(minutes=30)


async def test_an_erasure_stops_when_another_worker_has_claimed_the_account(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = not_none(await account_deletion.claim())
    monkeypatch.setattr(account_deletion, "LEASE", timedelta(hours=1))
    other = {"$set": {"erasing_until": clock.now() + timedelta(minutes=1)}}
    assert await User.change({"_id": ada.id}, other)
    assert not await account_deletion.erase(user)
    assert (await counts(ada))["posts"] == MANY
    assert await User.get(ada.id)


async def test_a_post_with_many_comments_is_deleted_in_small_transactions(
    ada: User, client: AsyncMongoClient[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "COMMENTS_AT_ONCE", 200)
    found = not_none(await Post.find_one({"author.$id": {"$ne": ada.id}}))
    root = await register("root", "admin")
    oplog = client["local"]["oplog.rs"]
    last = not_none(await oplog.find_one({}, sort=[("$natural", -1)]))
    await found.remove(by=acting(root))
    transactions = oplog.find({"ts": {"$gt": last["ts"]}, "o.applyOps": {"$exists": True}})
    # Besides the comments: the post, the audit event, the notification and its number.
    assert max([len(each["o"]["applyOps"]) async for each in transactions]) <= 200 + 4 + 1
    assert await Post.get(found.id) is None
    assert await Comment.find({"post.$id": found.id}).count() == 0
    assert await Event.find({"verb": POST_REMOVED.audit}).count() == 1


async def test_an_export_of_a_large_account_uses_little_memory(ada: User, db: Database) -> None:
    length, number = 4000, 5000
    body = "A long text. " * (length // 13)
    posts = [{"author": user_ref(ada.id), "title": "A post", "body": body} for _ in range(number)]
    await db["posts"].insert_many(posts)
    del posts
    archive = io.BytesIO()
    tracemalloc.start()
    try:
        await export._pack(ada, archive)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two batches: the one that is being written, and the next one from the server.
    assert peak < 2 * BATCH * length + 6_000_000 < length * number


async def test_reading_many_notifications_marks_them_in_batches(ada: User) -> None:
    await User.change({"_id": ada.id}, {"$set": {"notice_seq": MANY - 1}})
    await (await reloaded(ada)).read_notices()
    assert await Notice.find({"user.$id": ada.id, "read_at": None}).count() == 0
    assert (await reloaded(ada)).notices_read == MANY - 1
