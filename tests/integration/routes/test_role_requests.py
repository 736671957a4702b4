"""Asking for roles, and deciding about requests, on the pages."""

import re

import pytest

from quartapp.jobs import role_deletions
from quartapp.models import Role, RoleRequest
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from tests.integration.routes.conftest import (
    Visitor,
    Visitors,
    documents,
    pages,
    role_named,
    user_named,
)

HOME, LIST = "/account/roles", "/admin/requests"


@pytest.fixture
async def writer(visitors: Visitors) -> Role:
    return await Role.add("writer", "Writes the newsletter.", [Permission.POSTS_WRITE], by=SYSTEM)


async def ask(visitor: Visitor, role: str = "writer", reason: str = "For the print run.") -> str:
    """Ask for the role, and return the id of the request."""
    answer = await visitor.post(HOME, role=role, reason=reason)
    assert (answer.status, answer.location) == (303, HOME), answer.text
    return str((await RoleRequest.open_page(limit=1))[0].id)


async def test_the_page_shows_what_roles_allow_and_until_when(root: Visitor, ada: Visitor) -> None:
    await root.post("/admin/users/ada/grants", role="moderator", until="2h")
    page = (await ada.get(HOME)).text
    assert "<h3>member</h3>" in page
    assert "Remove anyone&#39;s posts and comments" in page
    (end,) = (await user_named("ada")).role_ends
    assert f'<time datetime="{end.until.isoformat(timespec="seconds")}"' in page
    assert "You have not asked for a role." in page
    assert "There is no other role that you can ask for." in page


async def test_a_request_is_granted_and_both_see_it(
    root: Visitor, ada: Visitor, writer: Role
) -> None:
    request = await ask(ada)
    page = (await ada.get(HOME)).text
    assert "For the print run." in page
    assert 'value="writer"' not in page, "it is not offered again"
    listed = (await root.get(LIST)).text
    assert 'href="/admin/users/ada"' in listed
    assert "For the print run." in listed
    answer = await root.post(f"{LIST}/{request}/grant", until="2h")
    assert (answer.status, answer.location) == (303, LIST)
    listed = (await root.get(LIST)).text
    assert "ada has the role writer until" in listed
    assert "No open requests." in listed
    assert ">granted</span>" in listed
    assert "<h3>writer</h3>" in (await ada.get(HOME)).text
    me = await ada.me()
    assert me is not None
    assert "writer" in me["roles"]
    assert len((await user_named("ada")).role_ends) == 1


async def test_a_declined_request_shows_the_reason(
    root: Visitor, ada: Visitor, writer: Role
) -> None:
    request = await ask(ada)
    answer = await root.post(f"{LIST}/{request}/decline", reason="Ask <again> in May.")
    assert answer.status == 303
    for page in (await ada.get(HOME), await root.get(LIST)):
        assert "Reason: Ask &lt;again&gt; in May." in page.text
        assert ">declined</span>" in page.text
    assert "Ask &lt;again&gt; in May." in (await ada.get("/account/notices")).text


async def test_a_user_withdraws_only_their_own_request(
    visitors: Visitors, root: Visitor, ada: Visitor, writer: Role
) -> None:
    request = await ask(ada)
    path = f"{HOME}/requests/{request}/withdraw"
    assert (await root.post(path)).status == 404
    assert (await ada.post(path)).status == 303
    assert ">withdrawn</span>" in (await ada.get(HOME)).text
    again = await ada.post(path)
    assert again.status == 422
    assert "This request was withdrawn." in again.text


async def test_deciding_twice_says_how_it_was_decided(
    visitors: Visitors, root: Visitor, ada: Visitor, writer: Role
) -> None:
    request = await ask(ada)
    grace = await visitors.admin("grace")
    assert (await grace.post(f"{LIST}/{request}/grant", until="")).status == 303
    for act in ("grant", "decline"):
        late = await root.post(f"{LIST}/{request}/{act}")
        assert late.status == 422
        assert "This request was already granted by grace." in late.text
    assert (await root.post(f"{LIST}/{'0' * 24}/grant")).status == 404


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"role": "", "reason": "Please."}, "role"),
        ({"role": "writer", "reason": " "}, "reason"),
        ({"role": "writer", "reason": "x" * 501}, "reason"),
        ({"role": "nothing", "reason": "Please."}, "role"),
    ],
)
async def test_an_invalid_request_is_shown_again_as_typed(
    ada: Visitor, writer: Role, fields: dict[str, str], wrong: str
) -> None:
    answer = await ada.post(HOME, **fields)
    assert answer.status == 422
    assert answer.error(wrong)
    assert fields["reason"].strip() in answer.text
    assert await documents("role_requests") == []


async def test_a_refused_request_keeps_the_reason(ada: Visitor, writer: Role) -> None:
    answer = await ada.post(HOME, role="moderator", reason="I moderate well.")
    assert answer.status == 422
    assert "The role moderator cannot be requested." in answer.text
    assert "I moderate well." in answer.text


async def test_an_invalid_end_is_shown_at_its_request(
    root: Visitor, ada: Visitor, writer: Role
) -> None:
    request = await ask(ada)
    answer = await root.post(f"{LIST}/{request}/grant", until="soon")
    assert answer.status == 422
    assert re.search(rf'id="until-{request}"[^>]* value="soon"', answer.text)
    assert f'id="until-{request}-error"' in answer.text
    refused = await root.post(f"{LIST}/{request}/decline", reason="x" * 501)
    assert refused.status == 422
    assert f'id="reason-{request}-error"' in refused.text
    assert await RoleRequest.count_open() == 1


async def test_what_an_administrator_cannot_decide_is_said(
    visitors: Visitors, ada: Visitor, writer: Role
) -> None:
    request = await ask(ada)
    helper = await visitors.with_permissions("helper", Permission.USERS_MANAGE)
    page = (await helper.get(LIST)).text
    assert "You cannot decide about this request." in page
    assert f"{request}/grant" not in page
    refused = await helper.post(f"{LIST}/{request}/grant", until="")
    assert refused.status == 403
    assert await RoleRequest.count_open() == 1


@pytest.fixture
def job_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the job from completing the deletion of roles."""

    async def wait() -> None: ...

    monkeypatch.setattr(role_deletions, "complete_all", wait)


@pytest.mark.usefixtures("job_is_late")
async def test_a_request_for_a_deleted_role_cannot_be_decided(
    visitors: Visitors, ada: Visitor
) -> None:
    powers = [Permission.POSTS_MODERATE]
    editor = await Role.add("editor", "", powers, requestable=True, by=SYSTEM)
    request = await ask(ada, "editor")
    # Lacks the permission of the role.
    helper = await visitors.with_permissions(
        "helper", Permission.USERS_MANAGE, Permission.POSTS_WRITE
    )
    await editor.remove(by=SYSTEM)
    page = (await helper.get(LIST)).text
    assert "For the print run." in page
    assert "The role was deleted." in page
    assert f"{request}/grant" not in page
    assert f"{request}/decline" not in page
    for act, typed in (("decline", {"reason": "No."}), ("grant", {"until": "2h"})):
        refused = await helper.post(f"{LIST}/{request}/{act}", **typed)
        assert refused.status == 422
        assert "The role editor was deleted in the meantime." in refused.text
    assert await RoleRequest.count_open() == 1


@pytest.mark.usefixtures("job_is_late")
async def test_a_request_for_a_deleted_role_is_withdrawn(ada: Visitor, writer: Role) -> None:
    request = await ask(ada)
    await writer.remove(by=SYSTEM)
    assert ">role deleted</span>" in (await ada.get(HOME)).text
    answer = await ada.post(f"{HOME}/requests/{request}/withdraw")
    assert (answer.status, answer.location) == (303, HOME)
    assert ">withdrawn</span>" in (await ada.get(HOME)).text


async def test_open_requests_come_first_and_pages_keep_their_place(
    root: Visitor, ada: Visitor, writer: Role
) -> None:
    user = await user_named("ada")
    rows = [
        RoleRequest(
            user=user,  # type: ignore[arg-type]
            role=await Role.add(f"role{number}", "", [], by=SYSTEM),  # type: ignore[arg-type]
            name=f"role{number}",
            reason=f"reason {number}.",
        )
        for number in range(28)
    ]
    await RoleRequest.insert_many(rows)
    seen = "".join(page.text for page in await pages(root, LIST))
    order = [seen.index(f"reason {number}.") for number in range(28)]
    assert order == sorted(order, reverse=True)


async def test_a_role_form_sets_whether_it_can_be_requested(root: Visitor, ada: Visitor) -> None:
    fields = {"name": "moderator", "description": "", "permissions": "posts.write"}
    for choice, stored in (("yes", True), ("no", False), ("default", None)):
        answer = await root.post("/admin/roles/moderator", **fields, requestable=choice)
        assert answer.status == 303
        assert (await role_named("moderator")).requestable is stored
    await root.post("/admin/roles/moderator", **fields, requestable="no")
    await root.post("/admin/roles/moderator", **{**fields, "description": "Changed."})
    assert (await role_named("moderator")).requestable is False, "a form without it keeps it"
