"""Posts, comments and profiles."""

from datetime import timedelta
from urllib.parse import quote

import pytest
from beanie import PydanticObjectId

from quartapp import clock
from quartapp.models import Comment, Post, Role, User, prepare
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import ref, user_ref
from quartapp.models.posts import comment as comments
from quartapp.models.posts import post as posts
from quartapp.models.posts import search
from quartapp.policy import Permission
from tests.integration.routes.conftest import (
    StartApp,
    Visitor,
    Visitors,
    documents,
    pages,
    role_named,
    user_named,
)
from tests.people import until

MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "{{ 777 * 777 }}{% raw %}",
    "javascript:alert(1)",
    "</textarea><script>alert(1)</script>",
    "<!--",
    "&lt;b&gt;",
]


async def write(visitor: Visitor, title: str = "A title", body: str = "Some text.") -> str:
    answer = await visitor.post("/posts/new", title=title, body=body)
    assert answer.status == 303, answer.text
    return answer.location


async def comment(visitor: Visitor, post: str, body: str = "A comment.") -> str:
    """Write a comment and return its id."""
    answer = await visitor.post(f"{post}/comments", body=body)
    assert answer.status == 303, answer.text
    return answer.location.rpartition("-")[2]


@pytest.fixture
async def bob(visitors: Visitors) -> Visitor:
    return await visitors.member("bob")


async def test_posts_and_comments_are_public(ada: Visitor, bob: Visitor) -> None:
    post = await write(ada, "On trees", "One way\nto everywhere.\n\nSecond paragraph.")
    said = await comment(bob, post, "I agree.")
    anonymous = ada.another_device()
    page = await anonymous.get(post)
    assert page.status == 200
    for text in ("On trees", "<p>One way<br>", "Second paragraph.", "I agree.", "bob"):
        assert text in page.text
    assert f'id="comment-{said}"' in page.text
    assert post in (await anonymous.get("/posts")).links
    assert "1 comment<" in (await anonymous.get("/posts")).text


async def test_only_the_author_edits_a_post(
    visitors: Visitors, ada: Visitor, root: Visitor
) -> None:
    post = await write(ada)
    for other in (
        await visitors.member("bob"),
        await visitors.with_permissions("all", *Permission),
        root,
    ):
        answer = await other.post(f"{post}/edit", title="Mine", body="now")
        assert answer.status == 403
    shown = (await ada.get(f"{post}/edit")).fields
    assert (shown["title"], shown["body"]) == ("A title", "Some text.")
    answer = await ada.post(f"{post}/edit", title="Better", body="text")
    assert (answer.status, answer.location) == (303, post)
    page = await ada.get(post)
    assert "Better" in page.text
    assert "edited" in page.text


async def test_an_author_without_permission_may_delete_but_not_edit(visitors: Visitors) -> None:
    ada = await visitors.member()
    post = await write(ada)
    said = await comment(ada, post)
    await (await user_named("ada")).revoke(await role_named("member"), by=SYSTEM)
    await until(ada.is_signed_out)
    assert (await ada.sign_in()).status == 303
    refused = await ada.post(f"{post}/edit", title="A", body="B")
    assert refused.status == 403
    assert Permission.POSTS_WRITE in refused.text
    assert (await ada.post(f"/comments/{said}/delete")).status == 303
    assert (await ada.post(f"{post}/delete")).status == 303
    assert await documents("posts") == await documents("comments") == []


async def test_authors_and_moderators_delete_a_post_with_its_comments(
    visitors: Visitors, ada: Visitor, bob: Visitor
) -> None:
    moderator = await visitors.with_permissions("mod", Permission.POSTS_MODERATE)
    first, second, kept = [await write(ada, title) for title in ("One", "Two", "Three")]
    for post in (first, second, kept):
        await comment(bob, post)
    assert (await bob.post(f"{first}/delete")).status == 403
    assert (await ada.post(f"{first}/delete")).status == 303
    assert (await moderator.post(f"{second}/delete")).status == 303
    assert [post["title"] for post in await documents("posts")] == ["Three"]
    assert len(await documents("comments")) == 1
    assert (await ada.get(first)).status == 404
    notices = (await ada.get("/account/notices")).text
    assert "mod removed your post “Two”" in notices
    assert "“One”" not in notices.replace("commented on “One”", "")


async def test_authors_and_moderators_delete_a_comment(
    visitors: Visitors, ada: Visitor, bob: Visitor
) -> None:
    moderator = await visitors.with_permissions("mod", Permission.POSTS_MODERATE)
    post = await write(ada)
    first, second = await comment(bob, post), await comment(bob, post)
    # The author of the post is not the author of its comments.
    assert (await ada.post(f"/comments/{first}/delete")).status == 403
    assert (await bob.post(f"/comments/{first}/delete")).location == post
    assert (await moderator.post(f"/comments/{second}/delete")).status == 303
    assert await documents("comments") == []
    assert (await documents("posts"))[0]["comment_count"] == 0
    assert (await bob.post(f"/comments/{first}/delete")).status == 404
    assert "removed your comment on “A title”" in (await bob.get("/account/notices")).text


async def test_a_comment_on_a_deleted_post_is_404(ada: Visitor, bob: Visitor) -> None:
    post = await write(ada)
    await ada.post(f"{post}/delete")
    assert (await bob.post(f"{post}/comments", body="Too late.")).status == 404
    assert await documents("comments") == []


@pytest.mark.parametrize("text", MARKUP)
async def test_markup_in_posts_is_escaped(ada: Visitor, text: str) -> None:
    post = await write(ada, text, text)
    await comment(ada, post, text)
    refused = await ada.post("/posts/new", title=text, body="")
    assert refused.fields["title"] == text
    edit = await ada.get(f"{post}/edit")
    assert edit.fields["title"] == edit.fields["body"] == text
    for page in (await ada.get(post), await ada.get("/posts"), await ada.get("/users/ada"), edit):
        assert page.status == 200
        for evil in (
            "<script>alert",
            "<img src=x",
            "<svg onload",
            'href="javascript',
            "603729",
            "<!-- ",
        ):
            assert evil not in page.text
        if text.startswith("<"):
            assert text.replace("<", "&lt;").replace(">", "&gt;") in page.text


REFUSED = [
    ("title", ""),
    ("title", "   "),
    ("title", "x" * 201),
    ("title", "a\0b"),
    ("title", "a\x1bb"),
    ("title", "a\x9bb"),
    ("title", "a\u202eb"),
    ("body", ""),
    ("body", " \n "),
    ("body", "x" * 20_001),
    ("body", "a\0b"),
    ("body", "a\x85b"),
]


async def test_an_invalid_post_is_shown_again_as_filled(ada: Visitor) -> None:
    post = await write(ada)
    before = await documents("posts")
    for field, value in REFUSED:
        typed = {"title": "A title", "body": "Some text.", field: value}
        (other,) = {"title", "body"} - {field}
        for form in ("/posts/new", f"{post}/edit"):
            answer = await ada.post(form, **typed)
            assert answer.status == 422, (form, field, value)
            assert answer.error(field), (form, field, value)
            assert answer.fields[other] == typed[other]
    assert await documents("posts") == before


async def test_an_invalid_comment_is_shown_again_as_filled(ada: Visitor) -> None:
    post = await write(ada)
    long = "long " * 801
    answer = await ada.post(f"{post}/comments", body=long)
    assert answer.status == 422
    assert answer.error("body")
    assert answer.fields["body"] == long.strip()
    assert (await ada.post(f"{post}/comments", body="")).status == 422
    assert await documents("comments") == []


@pytest.mark.parametrize(
    ("title", "body"),
    [
        ("x" * 200, "x" * 20_000),
        ("\N{SNAKE}" * 200, "\N{SNAKE}" * 5_000),
        ("שלום עולם", "مرحبا بالعالم\n\n你好世界"),
        ("Zalgo z͑ͫ̓ͪ̂ͫ", "tab\there, and “quotes” — and 👩‍👩‍👧‍👦"),
    ],
    ids=["as long as can be", "as many emoji", "other scripts", "combined"],
)
async def test_a_text_in_any_script_is_stored_unchanged(
    ada: Visitor, title: str, body: str
) -> None:
    post = await write(ada, title, body)
    shown = (await ada.get(f"{post}/edit")).fields
    assert (shown["title"], shown["body"]) == (title, body)
    assert (await ada.get("/posts")).status == 200


async def many_posts(author: str, count: int) -> list[str]:
    user = await user_named(author)
    rows = [
        Post(author=user_ref(user.id), title=f"Number {number}", body="Text.")
        for number in range(count)
    ]
    if rows:
        await Post.insert_many(rows)
    return [f"/posts/{row.id}" for row in reversed(rows)]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(0, [0]), (posts.PAGE, [posts.PAGE]), (posts.PAGE + 1, [posts.PAGE, 1])],
)
@pytest.mark.parametrize("path", ["/posts", "/users/ada"])
async def test_posts_are_paginated_newest_first(
    ada: Visitor, path: str, count: int, sizes: list[int]
) -> None:
    written = await many_posts("ada", count)
    shown = [[link for link in page.links if link in written] for page in await pages(ada, path)]
    assert [len(page) for page in shown] == sizes
    assert [link for page in shown for link in page] == written


@pytest.mark.parametrize(("count", "sizes"), [(50, [50]), (51, [50, 1])])
async def test_comments_are_paginated_oldest_first(
    ada: Visitor, count: int, sizes: list[int]
) -> None:
    assert comments.PAGE == 50
    post = await write(ada)
    user, post_id = await user_named("ada"), PydanticObjectId(post.rpartition("/")[2])
    rows = [
        Comment(author=user_ref(user.id), post=ref("posts", post_id), body=f"Said {number}.")
        for number in range(count)
    ]
    await Comment.insert_many(rows)
    texts = [page.text for page in await pages(ada, post)]
    assert [sum(f'"comment-{row.id}"' in text for row in rows) for text in texts] == sizes
    places = ["".join(texts).index(f'"comment-{row.id}"') for row in rows]
    assert places == sorted(places)


async def test_pagination_is_stable_while_posts_are_added_and_deleted(ada: Visitor) -> None:
    written = await many_posts("ada", posts.PAGE + 5)
    (first,) = [await ada.get("/posts")]
    (more,) = [link for link in first.links if "after=" in link]
    await write(ada, "Came meanwhile")
    # The cursor still works although its post is deleted.
    await Post.erase(PydanticObjectId(written[posts.PAGE - 1].rpartition("/")[2]))
    second = await ada.get(more)
    assert [link for link in second.links if link in written] == written[posts.PAGE :]


async def test_posts_of_a_raw_deleted_user_break_no_page(
    visitors: Visitors, ada: Visitor, bob: Visitor, root: Visitor
) -> None:
    post = await write(ada)
    theirs = await write(bob)
    await comment(ada, theirs)
    said = await comment(bob, post)
    await User.erase((await user_named("ada")).id)
    for page in ("/", "/posts", post, theirs, "/users/bob", "/account/notices"):
        assert (await bob.get(page)).status == 200, page
    for page in ("/admin/users", "/admin/sessions", "/admin/events", "/admin/users/bob"):
        assert (await root.get(page)).status == 200, page
    assert (await bob.get("/users/ada")).status == 404
    assert (await root.get("/admin/users/ada")).status == 404
    assert await ada.me() is None
    assert (await bob.post(f"{post}/comments", body="Anyone here?")).status == 303
    assert (await root.post(f"/comments/{said}/delete")).status == 303
    assert (await root.post(f"{post}/delete")).status == 303


async def test_a_profile_shows_roles_and_posts_to_signed_in_users(
    visitors: Visitors, ada: Visitor, bob: Visitor
) -> None:
    post, other = await write(bob, "Bob's"), await write(ada, "Ada's")
    role = await Role.add("gardener", "", [], by=SYSTEM)
    user = await user_named("bob")
    await user.grant(role, by=SYSTEM)
    page = await ada.get("/users/BOB")
    assert page.status == 200
    assert "gardener" in page.text
    assert post in page.links
    assert other not in page.links
    assert "bob@example.org" not in page.text
    assert (await ada.get("/users/nobody")).status == 404


async def test_the_profile_of_a_disabled_account_says_so_and_keeps_its_posts(
    ada: Visitor, bob: Visitor, root: Visitor
) -> None:
    post = await write(bob)
    await (await user_named("bob")).disable(by=SYSTEM)
    assert "disabled" in (await ada.get("/users/bob")).text
    assert (await ada.get(post)).status == 200


async def test_no_page_shows_a_future_time_for_a_past_event(ada: Visitor) -> None:
    post = await write(ada)
    past = clock.now() - timedelta(days=400)
    await Post.change_all({}, {"$set": {"created_at": past}})
    page = await ada.get(post)
    assert past.isoformat(timespec="seconds") in page.text
    assert f"{past:%b %Y}" in (await ada.get("/posts")).text


async def test_posts_and_comments_are_limited_and_keep_the_form(start_app: StartApp) -> None:
    visitors = await start_app(limit_post="3 per hour", limit_comment="2 per hour")
    ada, bob = await visitors.member("ada"), await visitors.member("bob")
    post = await write(ada)
    assert (await ada.post("/posts/new", title="", body="")).status == 422, "it does not count"
    await write(ada)
    assert (await ada.post(f"{post}/edit", title="Edited", body="Once")).status == 303
    for path in ("/posts/new", f"{post}/edit"):
        refused = await ada.post(path, title="Four", body="Too <many>")
        assert refused.status == 429
        assert 3000 < int(refused.headers["Retry-After"]) <= 3600
        assert refused.fields["title"] == "Four"
        assert refused.fields["body"] == "Too <many>"
    for _ in range(2):
        await comment(ada, post)
    refused = await ada.post(f"{post}/comments", body="Too <many>")
    assert refused.status == 429
    assert refused.fields["body"] == "Too <many>"
    assert await Comment.find({}).count() == 2
    # Another user has limits of their own.
    await comment(bob, await write(bob))


async def test_a_post_is_rendered_as_markdown_and_a_comment_is_not(ada: Visitor) -> None:
    post = await write(ada, "**Title**", "# Heading\n\n**bold** [link](https://example.org/)")
    await comment(ada, post, "**plain**")
    page = (await ada.get(post)).text
    assert "<h2>Heading</h2>" in page
    assert "<strong>bold</strong>" in page
    assert '<a href="https://example.org/" rel="nofollow ugc noopener">link</a>' in page
    assert "<p>**plain**</p>" in page
    assert ">**Title**</h1>" in page
    assert "Heading bold link<" in (await ada.get("/posts")).text


async def test_a_preview_shows_the_text_and_stores_nothing(ada: Visitor) -> None:
    post = await write(ada)
    before = await documents("posts")
    typed = {"title": "New <title>", "body": "# Heading\n\n**bold** <b>"}
    for path in ("/posts/new", f"{post}/edit"):
        page = await ada.post(path, **typed, preview="Preview")
        assert page.status == 200
        assert "<h2>New &lt;title&gt;</h2>" in page.text
        assert "<h3>Heading</h3>" in page.text
        assert "<strong>bold</strong> &lt;b&gt;" in page.text
        assert {name: page.fields[name] for name in typed} == typed
        assert "data-unsaved" in page.text
        refused = await ada.post(path, **{**typed, "title": ""}, preview="Preview")
        assert refused.status == 422
        assert refused.error("title")
        assert refused.fields["body"] == typed["body"]
    assert await documents("posts") == before


async def test_a_search_finds_posts_with_all_words_newest_first(ada: Visitor) -> None:
    trees = await write(ada, "Bäume", "A tree has **one** way to everywhere.")
    house = await write(ada, "House rules", "Three trees and one rule.")
    for text, expected in {
        "baum": [trees],
        "TREES": [house, trees],
        "one tree": [house, trees],
        "one way": [trees],
        "tree zebra": [],
        "“rule”": [house],
        "everyw": [],
        "$ne": [],
        "...": [],
    }.items():
        page = await ada.get(f"/posts?q={quote(text)}")
        assert [link for link in page.links if link in (trees, house)] == expected, text
        assert f'name="q" type="search" value="{text}"' in page.text
        assert ("No posts contain" in page.text) == (not expected), text
    await ada.post(f"{trees}/edit", title="Shrubs", body="Small.")
    assert trees not in (await ada.get("/posts?q=baum")).links
    assert trees in (await ada.get("/posts?q=shrub")).links


async def test_search_results_are_paginated_and_looked_at_in_parts(
    ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await user_named("ada")
    rows = [
        Post(author=user_ref(user.id), title="x", body="x", words=["all", f"mod{number % 5}"])
        for number in range(3 * posts.PAGE)
    ]
    await Post.insert_many(rows)
    written = [f"/posts/{row.id}" for row in reversed(rows)]
    shown = [link for page in await pages(ada, "/posts?q=all") for link in page.links]
    assert [link for link in shown if link in written] == written
    monkeypatch.setattr(search, "SCANNED", 12)
    found = [
        [link for link in page.links if link in written]
        for page in await pages(ada, "/posts?q=all+mod3")
    ]
    assert [link for page in found for link in page] == written[1::5]
    assert max(map(len, found)) <= 12
    # Two words that no post has together: the pages are empty, and the last one says so.
    empty = await pages(ada, "/posts?q=mod1+mod2")
    assert "None of the newest posts" in empty[0].text
    assert "No posts contain" in empty[-1].text


async def test_a_search_for_a_username_links_the_profile_for_signed_in_users(
    ada: Visitor, bob: Visitor
) -> None:
    assert "/users/bob" in (await ada.get("/posts?q=BOB")).links
    assert "/users/bob" not in (await ada.another_device().get("/posts?q=bob")).links


async def test_posts_of_earlier_versions_can_be_searched_after_the_start(ada: Visitor) -> None:
    post = await write(ada, "On trees", "One way.")
    await Post.change_all({}, {"$unset": {"words": ""}})
    assert post not in (await ada.get("/posts?q=trees")).links
    await prepare()
    assert post in (await ada.get("/posts?q=trees")).links
