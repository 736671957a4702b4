"""Lists are ordered, paginated, and read by an index in few queries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from beanie import Link, PydanticObjectId

from quartapp import clock
from quartapp.activities import ACCOUNT_CREATED, SIGNED_IN
from quartapp.authority import session_states
from quartapp.db.mongo import Database
from quartapp.models.accounts import account
from quartapp.models.accounts.administrators import active_administrators
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import linked_id, ref, role_ref, user_ref
from quartapp.models.base.tokens import digest_of
from quartapp.models.invitations.invitation import Invitation
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post
from quartapp.models.roles.role import Role
from quartapp.models.sessions import session_list
from quartapp.models.sessions.session import Session
from quartapp.models.sessions.session_list import Wanted, active_page
from tests.integration.models.helpers import HOUR, acting, not_none, register, role

USERS, EACH = 30, 10


@pytest.fixture
async def users(db: Database) -> list[User]:
    """Return thirty users with ten of everything each, inserted directly for speed."""
    member = await role("member")
    now = clock.now()
    people = [
        User(
            username=f"user{i:02}",
            email=f"{i:02}@example.org",
            password_hash="hash",
            roles=[Link(role_ref(member.id), Role)],
        )
        for i in range(USERS)
    ]
    await User.insert_many(people)
    posts, comments, notices, sessions, events = [], [], [], [], []
    for number in range(EACH):
        for i, user in enumerate(people):
            author: Any = user_ref(user.id)
            posts.append(Post(author=author, title=f"{i} {number}", body="…"))
            comments.append(Comment(author=author, post=ref("posts", posts[i].id), body="…"))
            notices.append(
                Notice(user=author, seq=number + 1, kind=ACCOUNT_CREATED.notification_kind)
            )
            events.append(Event(actor=author, subject=author, verb=SIGNED_IN.audit_name))
            seen = now - timedelta(seconds=i * EACH + number)
            sessions.append(
                Session(
                    digest=digest_of(f"{i} {number}"),
                    user=author,
                    device="Firefox",
                    created_at=now,
                    seen_at=seen,
                    expires_at=now + HOUR,
                    idle_seconds=3600,
                    confirmed_at=now,
                    credential=fingerprint("hash"),
                )
            )
    for documents in (posts, comments, notices, sessions, events):
        await type(documents[0]).insert_many(documents)
    return people


def page_of_posts(user: User) -> Awaitable[Any]:
    return Post.page(author=user.id, before=PydanticObjectId(), limit=5)


async def comments_of_a_post(user: User) -> list[Comment]:
    post = not_none(await Post.find({"author.$id": user.id}, sort="_id").first_or_none())
    return await Comment.page(post.id, after=post.id, limit=5)


# The list, the number of its queries (linked documents included), and of the documents it reads.
LISTS: dict[str, tuple[Callable[[User], Awaitable[Any]], int, int]] = {
    "posts": (lambda _: Post.page(limit=5), 2, 10),
    "posts of an author": (page_of_posts, 1, 5),
    "comments of a post": (comments_of_a_post, 3, 7),
    "notices after a cursor": (lambda u: Notice.after(u.id, 4, limit=5), 1, 5),
    "newest notices": (lambda u: Notice.page(u.id, before=8, limit=5), 1, 5),
    "events": (lambda _: Event.page(limit=5), 2, 15),
    "events about a user": (lambda u: Event.page(subject=u.id, limit=5), 2, 7),
    "users": (lambda _: User.search("", limit=5), 2, 7),
    "users after a name": (lambda _: User.search("", after="user07", limit=5), 2, 7),
    "active sessions": (lambda _: active_page(Wanted(), limit=5), 3, 11),
    "a session by its token": (lambda _: session_states.state_by_digest(digest_of("3 3")), 1, 3),
    "a user by name": (lambda _: User.by_username("USER07"), 2, 2),
    "a user by address": (lambda _: User.by_email("07@EXAMPLE.org"), 2, 2),
    "an invitation by its token": (lambda _: Invitation.by_token("x" * 43), 1, 0),
    "administrators": (lambda _: active_administrators(), 2, 3),
}


@pytest.mark.parametrize("what", LISTS)
async def test_a_page_is_read_by_index_in_few_queries(
    users: list[User], queries: Any, what: str
) -> None:
    work, count, documents = LISTS[what]
    asked = await queries(work(users[7]))
    assert len(asked) == count, [each["command"] for each in asked]
    for each in asked:
        if each["ns"].endswith(".roles"):
            continue  # There are few roles, so a scan is cheap.
        assert "COLLSCAN" not in each["planSummary"], each["command"]
        assert not each.get("hasSortStage"), each["command"]
    assert sum(each.get("docsExamined", 0) for each in asked) <= documents


async def test_a_search_reads_an_index_for_each_field(users: list[User], queries: Any) -> None:
    *found, shown, roles = await queries(User.search("user2"))
    plans = " ".join(each["planSummary"] for each in found)
    for field in ("username", "email", "canonical_claim"):
        assert f"IXSCAN {{ {field}: 1 }}" in plans
    assert "COLLSCAN" not in plans
    assert sum(each["docsExamined"] for each in [*found, shown]) == 20
    assert shown["nreturned"] == 10
    assert roles["ns"].endswith(".roles")


async def test_a_search_considers_a_limited_number_of_addresses(
    users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "ADDRESSES_FOUND", 4)
    assert [user.username for user in await User.search("0")] == [f"user0{i}" for i in range(4)]
    assert [user.username for user in await User.search("0", after="user01")] == [
        "user02",
        "user03",
    ]


async def test_the_sessions_of_a_user_are_read_by_index(users: list[User], queries: Any) -> None:
    (asked,) = await queries(Session.of_user(users[7].id))
    assert "not_ended_by_user" in str(asked["execStats"])
    assert asked["docsExamined"] == EACH


# ---- order


async def test_pages_of_posts_list_each_post_once_newest_first(users: list[User]) -> None:
    seen: list[Post] = []
    while page := await Post.page(before=seen[-1].id if seen else None, limit=70):
        seen += page
    assert len(seen) == USERS * EACH
    assert [post.id for post in seen] == sorted({post.id for post in seen}, reverse=True)
    assert {post.author.username for post in seen} == {user.username for user in users}  # type: ignore[attr-defined]


async def test_pages_of_an_author_list_only_their_posts(users: list[User]) -> None:
    first = await Post.page(author=users[3].id, limit=6)
    rest = await Post.page(author=users[3].id, before=first[-1].id, limit=6)
    assert [post.title for post in first + rest] == [f"3 {i}" for i in reversed(range(EACH))]


async def test_comments_are_listed_oldest_first(db: Database) -> None:
    ada = await register("ada", "member")
    post = await Post.write("On engines", "…", by=acting(ada))
    other = await Post.write("On looms", "…", by=acting(ada))
    for i in range(5):
        await Comment.write(post, f"{i}", by=acting(ada))
        await Comment.write(other, f"other {i}", by=acting(ada))
    first = await Comment.page(post.id, limit=3)
    rest = await Comment.page(post.id, after=first[-1].id, limit=3)
    assert [comment.body for comment in first + rest] == list("01234")
    assert not_none(await Post.get(post.id)).comment_count == 5


async def test_a_cursor_returns_missed_notifications_in_order_each_once(users: list[User]) -> None:
    ada, seen, cursor = users[0], [], 0
    while page := await Notice.after(ada.id, cursor, limit=3):
        seen += [notice.seq for notice in page]
        cursor = page[-1].seq
    assert seen == list(range(1, EACH + 1))
    assert await Notice.after(ada.id, EACH) == []
    assert await Notice.after(ada.id, 10**9) == []
    newest = [notice.seq for notice in await Notice.page(ada.id, before=4, limit=30)]
    assert newest == [3, 2, 1]


async def all_active(*, limit: int) -> list[Session]:
    """Return the active sessions of all pages."""
    seen, place = await active_page(Wanted(), limit=limit)
    while place:
        page, place = await active_page(Wanted(), before=place, limit=limit)
        seen += page
    return seen


async def test_active_sessions_are_listed_by_last_use(users: list[User]) -> None:
    seen = await all_active(limit=70)
    assert len({session.id for session in seen}) == len(seen) == USERS * EACH
    assert [session.seen_at for session in seen] == sorted(
        (session.seen_at for session in seen), reverse=True
    )
    assert linked_id(seen[0].user) == users[0].id
    assert seen[0].user.username == "user00"  # type: ignore[attr-defined]


async def test_sessions_used_in_the_same_millisecond_are_listed_once_each(
    users: list[User], db: Database
) -> None:
    await db["sessions"].update_many({}, {"$set": {"seen_at": clock.now()}})
    seen = await all_active(limit=70)
    assert len({session.id for session in seen}) == len(seen) == USERS * EACH


async def test_active_sessions_of_several_idle_times_are_listed_without_ended_ones(
    users: list[User], db: Database
) -> None:
    now, minute = clock.now(), timedelta(minutes=1)
    theirs = [{"user.$id": user.id} for user in users]
    await db["sessions"].update_many(theirs[0], {"$set": {"ended_at": now}})
    await db["sessions"].update_many(theirs[1], {"$set": {"seen_at": now - 2 * minute}})
    await db["sessions"].update_many(theirs[2], {"$set": {"idle_seconds": 60}})
    idle = {"idle_seconds": 60, "seen_at": now - 2 * minute}
    await db["sessions"].update_many(theirs[3], {"$set": idle})
    await db["sessions"].update_many(theirs[4], {"$set": {"expires_at": now - minute}})
    seen = await all_active(limit=7)
    assert len({session.id for session in seen}) == len(seen) == (USERS - 3) * EACH
    assert [s.seen_at for s in seen] == sorted((s.seen_at for s in seen), reverse=True)
    absent = {users[number].id for number in (0, 3, 4)}
    assert absent.isdisjoint(linked_id(session.user) for session in seen)


async def test_a_page_of_active_sessions_skips_a_limited_number_of_ended_ones(
    users: list[User], db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_list, "SKIPPED", 20)
    newest = {"user.$id": {"$in": [user.id for user in users[:5]]}}
    await db["sessions"].update_many(newest, {"$set": {"ended_at": clock.now()}})
    page, place = await active_page(Wanted(), limit=10)
    assert page == []
    assert place is not None
    assert len(await all_active(limit=10)) == (USERS - 5) * EACH


async def test_a_full_page_of_active_sessions_skips_ended_ones_in_few_queries(
    users: list[User],
    db: Database,
    queries: Callable[[Awaitable[Any]], Awaitable[list[dict[str, Any]]]],
) -> None:
    ended = {"user.$id": {"$ne": users[0].id}}
    await db["sessions"].update_many(ended, {"$set": {"ended_at": clock.now()}})
    asked = await queries(active_page(Wanted(), limit=EACH))
    assert len(asked) <= USERS + 2


async def test_posts_of_a_deleted_user_are_still_listed(users: list[User], db: Database) -> None:
    await db["users"].delete_one({"_id": users[3].id})
    page = await Post.page(author=users[3].id)
    assert len(page) == EACH
    assert {post.author_id for post in page} == {users[3].id}
    assert not_none(await Post.with_author(page[0].id)).author_id == users[3].id


# ---- search


@pytest.fixture
async def people(db: Database) -> None:
    for name, email in [
        ("ada", "countess@example.org"),
        ("Adam", "first@example.org"),
        ("bob", "adalbert@example.org"),
        ("carol", "carol@ada.example.org"),
        ("x.y_z", "dots@example.org"),
        ("zoe", "zoe@Example.org"),
    ]:
        await register_account(name, email, "hash", roles=[await role("member")], by=SYSTEM)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ada", ["ada", "Adam", "bob"]),
        ("ADA", ["ada", "Adam", "bob"]),
        ("adam", ["Adam"]),
        ("first@", ["Adam"]),
        ("ZOE@EXAMPLE.ORG", ["zoe"]),
        ("x.y", ["x.y_z"]),
        ("", ["ada", "Adam", "bob", "carol", "x.y_z", "zoe"]),
        ("da", []),
        *((text, []) for text in [".*", ".*(", "^a", "a.*", "[", "\\", "(", "a|b", "$", "*", "%"]),
        *((text, []) for text in ["$ne", '{"$gt": ""}', "\uffff", "😀", "a" * 5000]),
    ],
)
async def test_a_search_matches_prefixes_in_any_case_and_no_patterns(
    people: None, text: str, found: list[str]
) -> None:
    assert [user.username for user in await User.search(text)] == found


async def test_a_search_continues_after_a_name_in_any_case(people: None) -> None:
    assert [user.username for user in await User.search("ada", after="ADAM")] == ["bob"]
    assert [user.username for user in await User.search("", limit=2)] == ["ada", "Adam"]
    assert [user.username for user in await User.search("", after="Adam", limit=2)] == [
        "bob",
        "carol",
    ]


async def test_a_search_loads_the_roles(people: None) -> None:
    (zoe,) = await User.search("zoe")
    assert [held.name for held in zoe.roles] == ["member"]  # type: ignore[attr-defined]
