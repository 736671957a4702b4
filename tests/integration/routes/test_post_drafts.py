"""Drafts of posts, which the server keeps for their authors."""

import pytest
from limits import parse

from quartapp.models.base.actor import SYSTEM
from quartapp.models.posts.draft import PostDraft
from quartapp.routes.posts import pages
from tests.integration.routes.conftest import (
    Answer,
    StartApp,
    Visitor,
    Visitors,
    documents,
    role_named,
    user_named,
)
from tests.people import until

TEXT = {"title": "A <title>", "body": "Some\ntext."}


async def save(visitor: Visitor, path: str = "/posts/new", **text: str) -> None:
    answer = await visitor.post(path, **(text or TEXT), draft="save")
    assert (answer.status, answer.location) == (303, path), answer.text


async def filled(visitor: Visitor, path: str = "/posts/new") -> dict[str, str]:
    fields = (await visitor.get(path)).fields
    return {name: fields[name] for name in TEXT}


async def test_a_draft_is_there_on_another_device_until_it_is_published(ada: Visitor) -> None:
    await save(ada)
    phone = ada.another_device()
    await phone.sign_in()
    page = await phone.get("/posts/new")
    assert {name: page.fields[name] for name in TEXT} == TEXT
    assert "not published yet" in page.text
    assert "A &lt;title&gt;</a>" in (await phone.get("/posts")).text
    assert await documents("posts") == []
    await save(phone, title="Another", body="")
    assert await filled(ada) == {"title": "Another", "body": ""}
    assert (await ada.post("/posts/new", **TEXT)).status == 303
    assert await documents("post_drafts") == []
    assert await filled(ada) == {"title": "", "body": ""}
    assert "Your drafts" not in (await ada.get("/posts")).text


async def test_a_draft_of_changes_leaves_the_post_as_it_is(ada: Visitor) -> None:
    post = (await ada.post("/posts/new", title="Old", body="old")).location
    await save(ada, f"{post}/edit")
    assert await filled(ada, f"{post}/edit") == TEXT
    assert ">Old</h1>" in (await ada.get(post)).text
    assert f"{post}/edit" in (await ada.get("/posts")).links
    discarded = await ada.post(f"{post}/edit", **TEXT, draft="discard")
    assert discarded.location == f"{post}/edit"
    assert await filled(ada, f"{post}/edit") == {"title": "Old", "body": "old"}
    await save(ada, f"{post}/edit")
    assert (await ada.post(f"{post}/edit", **TEXT)).status == 303
    assert await documents("post_drafts") == []
    await save(ada, f"{post}/edit")
    await ada.post(f"{post}/delete")
    assert await documents("post_drafts") == []


async def test_a_draft_is_shown_to_its_author_only(
    visitors: Visitors, ada: Visitor, root: Visitor
) -> None:
    bob = await visitors.member("bob")
    post = (await ada.post("/posts/new", title="Old", body="old")).location
    await save(ada, title="Secret one", body="x")
    await save(ada, f"{post}/edit", title="Secret two", body="x")
    refused = await bob.post(f"{post}/edit", **TEXT, draft="save")
    assert refused.status == 403
    for other in (bob, root, ada.another_device()):
        for path in ("/posts", "/posts/new", post, f"{post}/edit", "/posts?q=secret"):
            assert "Secret" not in (await other.get(path)).text
    assert len(await documents("post_drafts")) == 2


async def test_a_draft_without_text_is_deleted(ada: Visitor) -> None:
    await save(ada)
    await save(ada, title="", body=" ")
    assert await documents("post_drafts") == []


@pytest.mark.parametrize(("field", "value"), [("title", "x" * 201), ("body", "a\0b")])
async def test_an_invalid_draft_is_shown_again_as_filled(
    ada: Visitor, field: str, value: str
) -> None:
    answer = await ada.post("/posts/new", **{**TEXT, field: value}, draft="save")
    assert answer.status == 422
    assert answer.error(field)
    assert await documents("post_drafts") == []
    # Nothing is wrong with discarding it.
    assert (await ada.post("/posts/new", **{field: value}, draft="discard")).status == 303


async def test_a_draft_needs_the_permission_and_comes_back_with_it(visitors: Visitors) -> None:
    ada = await visitors.member()
    await save(ada)
    user, member = await user_named("ada"), await role_named("member")
    await user.revoke(member, by=SYSTEM)
    await until(ada.is_signed_out)
    await ada.sign_in()
    assert (await ada.post("/posts/new", **TEXT, draft="save")).status == 403
    await (await user_named("ada")).grant(member, by=SYSTEM)
    await until(lambda: filled_or_none(ada))
    assert await filled(ada) == TEXT


async def filled_or_none(visitor: Visitor) -> bool:
    return (await visitor.get("/posts/new")).status == 200


async def test_saved_drafts_are_limited(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "DRAFTS", parse("1 per hour"))
    ada = await (await start_app()).member("ada")
    await save(ada)
    refused = await ada.post("/posts/new", title="Second", body="x", draft="save")
    assert refused.status == 429
    assert refused.fields["title"] == "Second"


def shown(answer: Answer) -> dict[str, str]:
    """Return the fields by which a page says which draft it shows."""
    return {name: answer.fields[name] for name in ("version", "opened") if name in answer.fields}


async def type_into(
    visitor: Visitor, page: Answer, path: str = "/posts/new", **text: str
) -> Answer:
    """Send what a page sends while its user types."""
    address = path.removesuffix("/edit") + "/draft"
    return await visitor.post(address, **{**TEXT, **text}, **shown(page))


@pytest.mark.parametrize("path", ["/posts/new", "edit"])
async def test_a_draft_is_saved_while_it_is_typed(ada: Visitor, path: str) -> None:
    if path == "edit":
        path = (await ada.post("/posts/new", title="Old", body="old")).location + "/edit"
        await ada.post(path, title="Newer", body="newer")
    page = await ada.get(path)
    for body in ("One", "One, two", ""):
        page = await type_into(ada, page, path, body=body)
        assert page.status == 200
        assert "Draft saved" in page.text
        assert await filled(ada, path) == {**TEXT, "body": body}
    # Without any text the draft stays.
    page = await type_into(ada, page, path, title="", body="")
    assert page.status == 200
    assert await filled(ada, path) == {**TEXT, "body": ""}


@pytest.mark.parametrize("path", ["/posts/new", "edit"])
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "not saved"])
@pytest.mark.parametrize("done", ["save", "discard", "publish"])
async def test_typing_replaces_nothing_newer(
    ada: Visitor, path: str, saved: bool, done: str
) -> None:
    """A page types into the draft that another page has saved, discarded or published."""
    if path == "edit":
        path = (await ada.post("/posts/new", title="Old", body="old")).location + "/edit"
    page = await ada.get(path)
    if saved:
        page = await type_into(ada, page, path)
    await ada.post(path, title="Newer", body="x", **({} if done == "publish" else {"draft": done}))
    before = await documents("post_drafts")
    late = await type_into(ada, page, path, body="Typed before that")
    if done == "discard" and not saved:
        # There was nothing to discard.
        assert late.status == 200
        return
    assert late.status == 409
    assert "elsewhere" in late.text
    assert await documents("post_drafts") == before


async def test_a_draft_of_an_earlier_release_is_saved_while_it_is_typed(ada: Visitor) -> None:
    await save(ada)
    await PostDraft.get_motor_collection().update_many({}, {"$unset": {"version": 1}})
    page = await ada.get("/posts/new")
    assert (await type_into(ada, page, body="More")).status == 200
    assert (await type_into(ada, page, body="Less")).status == 409
    assert (await filled(ada))["body"] == "More"


async def test_text_that_is_not_valid_is_not_saved_while_it_is_typed(ada: Visitor) -> None:
    page = await ada.get("/posts/new")
    refused = await type_into(ada, page, title="x" * 201)
    assert refused.status == 422
    assert "at most 200 characters" in refused.text
    assert shown(refused) == shown(page)
    assert await documents("post_drafts") == []
    nonsense = await ada.post("/posts/new/draft", **TEXT, version="x", opened="y")
    assert nonsense.status == 409
    assert await documents("post_drafts") == []


async def test_only_its_author_types_into_a_post(visitors: Visitors, ada: Visitor) -> None:
    bob = await visitors.member("bob")
    post = (await ada.post("/posts/new", title="Old", body="old")).location
    page = await ada.get(f"{post}/edit")
    assert (await type_into(bob, page, post)).status == 403
    await ada.post(f"{post}/delete")
    assert (await type_into(ada, page, post)).status == 404
    assert await documents("post_drafts") == []


async def test_drafts_that_are_saved_while_typing_are_limited(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "DRAFTS", parse("1 per hour"))
    ada = await (await start_app()).member("ada")
    page = await type_into(ada, await ada.get("/posts/new"))
    refused = await type_into(ada, page, body="More")
    assert refused.status == 429
    assert shown(refused) == shown(page)
    assert await filled(ada) == TEXT
    await save(ada)
