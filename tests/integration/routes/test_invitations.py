"""Sending and accepting invitations (ASVS 6.4.1, 2.3.4, 2.4.1, 6.1.1)."""

import asyncio
import re
from datetime import timedelta

import pytest
from beanie import PydanticObjectId

from quartapp import clock
from quartapp.models import Invitation, Role
from quartapp.models.accounts.administrators import active_administrators
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import role_ref, user_ref
from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from tests.conftest import PASSWORD
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    documents,
    link_in,
    pages,
    role_named,
    user_named,
)
from tests.integration.routes.requests import create_invitation

HOME = "/admin/invitations"
BOB = "bob@example.org"


async def invite(visitor: Visitor, email: str = BOB, role: str = "") -> Answer:
    return await visitor.post(HOME, email=email, role=role)


async def invitation_link(visitors: Visitors, root: Visitor, role: str = "") -> str:
    answer = await invite(root, role=role)
    assert (answer.status, answer.location) == (303, HOME), answer.text
    return link_in((await visitors.emails(BOB, "invited"))[0])


async def accept(visitor: Visitor, link: str, username: str = "bob", **fields: str) -> Answer:
    form = {"username": username, "password": PASSWORD, "confirm": PASSWORD}
    return await visitor.post(link, **{**form, **fields})


async def test_accepting_an_invitation_signs_in_with_the_role_and_verifies(
    visitors: Visitors, root: Visitor
) -> None:
    link, bob = await invitation_link(visitors, root, "moderator"), visitors.anonymous()
    page = await bob.get(link)
    assert page.status == 200
    assert page.headers["Referrer-Policy"] == "no-referrer"
    for word in ("root", BOB, "moderator"):
        assert word in page.text
    assert await documents("users", username="bob") == [], "opening the link creates nothing"
    answer = await accept(bob, link)
    assert (answer.status, answer.location) == (303, "/")
    me = await bob.me()
    assert me is not None
    assert (me["username"], me["roles"]) == ("bob", ["member", "moderator"])
    user = await user_named("bob")
    assert (user.email, user.email_verified_at is not None) == (BOB, True)
    assert "not verified" not in (await bob.get("/account")).text
    assert "which gave the roles: member, moderator" in (await bob.get("/account/timeline")).text
    await visitors.wait_for_outbox()
    assert len(await visitors.emails(BOB)) == 1
    assert f"bob accepted your invitation to {BOB}." in (await root.get("/account/notices")).text
    assert "accepted by" in re.sub(r"\s+", " ", (await root.get(HOME)).text)


@pytest.mark.parametrize("role", ["", "member"])
async def test_an_invitation_without_a_role_creates_a_member(
    visitors: Visitors, root: Visitor, role: str
) -> None:
    bob = visitors.anonymous()
    assert (await accept(bob, await invitation_link(visitors, root, role))).status == 303
    me = await bob.me()
    assert me is not None
    assert me["roles"] == ["member"]


async def test_concurrent_acceptances_on_the_page_succeed_once(
    visitors: Visitors, root: Visitor
) -> None:
    link = await invitation_link(visitors, root)
    browsers = [visitors.anonymous() for _ in range(5)]
    answers = await asyncio.gather(
        *(accept(visitor, link, f"bob{i}") for i, visitor in enumerate(browsers))
    )
    assert sorted(answer.status for answer in answers) == [303] + 4 * [410]
    assert len(await documents("users", email=BOB)) == 1
    again = await accept(visitors.anonymous(), link, "bobby")
    assert again.status == 410
    assert "It was already used" in again.text
    assert "/login" in again.links


async def test_an_invalid_form_does_not_use_up_the_invitation(
    visitors: Visitors, root: Visitor
) -> None:
    link, bob = await invitation_link(visitors, root), visitors.anonymous()
    taken = await accept(bob, link, "ROOT")
    assert taken.status == 422
    assert "taken" in taken.error("username")
    assert taken.fields["username"] == "ROOT"
    for field, fields in (
        ("username", {"username": "two words"}),
        ("password", {"password": "short", "confirm": "short"}),
        ("password", {"password": BOB, "confirm": BOB}),
        ("confirm", {"confirm": "x"}),
    ):
        answer = await accept(bob, link, **fields)
        assert answer.status == 422
        assert answer.error(field)
        assert PASSWORD not in answer.text
    assert (await accept(bob, link)).status == 303


async def test_an_invalid_invitation_link_says_why(visitors: Visitors, root: Visitor) -> None:
    past, now = clock.now() - timedelta(seconds=1), clock.now()
    eve = await visitors.account("eve")
    for words, fields in (
        ("older than 7 days", {"expires_at": past}),
        ("was withdrawn", {"withdrawn_at": now}),
        ("already used", {"accepted_at": now}),
        ("no longer has permission to invite", {"by": user_ref(eve.id)}),
        ("no longer has permission to invite", {"by": user_ref(PydanticObjectId())}),
    ):
        _, token = await create_invitation("x@example.org", **fields)
        for answer in (
            await visitors.anonymous().get(f"/invited/{token}"),
            await accept(visitors.anonymous(), f"/invited/{token}"),
        ):
            assert answer.status == 410
            assert words in answer.text
    assert ">a deleted user</td>" in (await root.get(HOME)).text
    for token in ("x", "0" * 43, "%00", "$ne"):
        answer = await accept(visitors.anonymous(), f"/invited/{token}")
        assert answer.status == 410
        assert "the link is incorrect" in answer.text
    assert await documents("users", username="bob") == []


async def test_an_invited_address_with_an_account_is_sent_to_sign_in(
    visitors: Visitors, root: Visitor
) -> None:
    link = await invitation_link(visitors, root, "moderator")
    bob = visitors.anonymous()
    assert (await bob.register("bobby", email=BOB.upper())).status == 303
    for answer in (await visitors.anonymous().get(link), await accept(visitors.anonymous(), link)):
        assert answer.status == 410
        assert "You already have an account" in answer.text
        assert "/login" in answer.links
    me = await bob.me()
    assert me is not None
    assert me["roles"] == ["member"]
    refused = await invite(root)
    assert refused.status == 422
    assert "taken" in refused.error("email")
    (found,) = await documents("invitations")
    again = await root.post(f"{HOME}/{found['_id']}/again")
    assert again.status == 422
    assert "taken" in again.text


async def test_an_invitation_requires_the_current_authority_of_its_inviter(
    visitors: Visitors, root: Visitor
) -> None:
    moderating = (await role_named("moderator")).known
    eve = await visitors.with_permissions("eve", Permission.USERS_MANAGE, *moderating)
    link = await invitation_link(visitors, eve, "moderator")
    assert (await root.post("/admin/users/eve/grants/role-of-eve/revoke")).status == 303
    assert (await accept(visitors.anonymous(), link)).status == 410
    page = (await root.get(HOME)).text
    assert "not valid" in page
    (found,) = await documents("invitations")
    assert (await root.post(f"{HOME}/{found['_id']}/again")).status == 303
    newer = link_in((await visitors.emails(BOB, "invited", count=2))[0])
    assert (await accept(visitors.anonymous(), link)).status == 410
    assert (await accept(visitors.anonymous(), newer)).status == 303


async def test_an_invitation_is_withdrawn_and_sent_again(visitors: Visitors, root: Visitor) -> None:
    link = await invitation_link(visitors, root)
    (found,) = await documents("invitations")
    answer = await root.post(f"{HOME}/{found['_id']}/withdraw")
    assert (answer.status, answer.location) == (303, HOME)
    assert "withdrawn by root" in re.sub(r"\s+", " ", (await root.get(HOME)).text)
    assert "was withdrawn" in (await visitors.anonymous().get(link)).text
    for act in ("withdraw", "again"):
        answer = await root.post(f"{HOME}/{found['_id']}/{act}")
        assert answer.status == 303
        assert "no longer pending" in (await root.get(HOME)).text
    await visitors.wait_for_outbox()
    assert len(await visitors.emails(BOB)) == 1


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("email", {"email": ""}),
        ("email", {"email": "no address"}),
        ("email", {"email": "ROOT@example.org"}),
        ("role", {"role": "nothing"}),
    ],
)
async def test_an_invalid_invitation_form_is_shown_again_as_filled(
    root: Visitor, field: str, fields: dict[str, str]
) -> None:
    answer = await root.post(HOME, **{"email": BOB, "role": "", **fields})
    assert answer.status == 422
    assert answer.error(field)
    assert answer.fields["email"] == fields.get("email", BOB)
    assert await documents("outbox") == await documents("invitations") == []


async def test_invitations_are_limited_per_address_and_per_inviter(
    visitors: Visitors, root: Visitor
) -> None:
    limits = runtime_of(visitors.app).settings
    await invitation_link(visitors, root)
    (found,) = await documents("invitations")
    for _ in range(limits.limit_invitation.amount - 1):
        assert (await root.post(f"{HOME}/{found['_id']}/again")).status == 303
    for refused in (
        await root.post(f"{HOME}/{found['_id']}/again"),
        await invite(root, BOB.upper()),
    ):
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) > 3600
        assert "Too many" in refused.text
    await visitors.wait_for_outbox()
    me = await user_named("root")
    for number in range(limits.invitations_per_user - 1):
        await create_invitation(f"{number}@example.org", by=user_ref(me.id))
    full = await invite(root, "other@example.org")
    assert full.status == 422
    assert "which is the maximum" in full.text
    assert full.fields["email"] == "other@example.org"
    by_another, _ = await create_invitation("another@example.org")
    full = await root.post(f"{HOME}/{by_another.id}/again")
    assert full.status == 422
    assert "which is the maximum" in full.text


async def test_the_list_of_invitations_is_paginated_with_their_state(
    visitors: Visitors, root: Visitor
) -> None:
    assert "No recent invitations" in (await root.get(HOME)).text
    me = await user_named("root")
    editor = await Role.add("editor", "", [], by=SYSTEM)
    mine = {"by": user_ref(me.id), "role": role_ref(editor.id)}
    for number in range(103):
        await create_invitation(f"guest{number:03}@example.org", **mine)
    shown = await pages(root, HOME)
    found = [re.findall(r"scope=\"row\">(guest\d+)@", page.text) for page in shown]
    assert [len(page) for page in found] == [50, 50, 3]
    assert [name for page in found for name in page] == [f"guest{n:03}" for n in range(102, -1, -1)]
    assert "editor" in shown[0].text
    await editor.remove(by=SYSTEM)
    assert "deleted role" in (await root.get(HOME)).text


async def test_accepting_replaces_the_session_of_another_account(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    link = await invitation_link(visitors, root)
    assert "signed in as ada" in (await ada.get(link)).text
    assert (await accept(ada, link)).status == 303
    me = await ada.me()
    assert me is not None
    assert me["username"] == "bob"
    over = await documents("sessions", ended_reason="signed_out")
    assert [each["user"].id for each in over] == [(await user_named("ada")).id]


async def test_the_invitation_email_uses_the_configured_origin(
    visitors: Visitors, root: Visitor
) -> None:
    token = await root.csrf_token()
    fields = {"csrf_token": token, "email": BOB}
    headers = {
        "Host": "localhost:1",
        "X-Forwarded-Host": "evil.example",
        "Sec-Fetch-Site": "same-origin",
    }
    assert (await root.send(HOME, fields, headers)).status == 303
    (message,) = await visitors.emails(BOB)
    assert "http://127.0.0.1:5000/invited/" in message
    assert "evil" not in message
    assert "root invites you" in message
    secret = link_in(message).rpartition("/")[2]
    for name in ("invitations", "outbox", "events", "notices", "tokens"):
        assert secret not in str(await documents(name))
    (stored,) = await documents("invitations")
    assert secret not in repr(await Invitation.get(stored["_id"]))
    assert stored["digest"] not in repr(await Invitation.get(stored["_id"]))
    assert (await visitors.anonymous().get(f"/invited/{stored['digest']}")).status == 410
    assert (await visitors.anonymous().get(f"/reset/{secret}")).status == 410


async def test_accepting_an_invitation_counts_as_a_registration(
    visitors: Visitors, root: Visitor
) -> None:
    link = await invitation_link(visitors, root)
    before = await documents("allowances")
    await accept(visitors.anonymous(), link, "root")
    assert len(await documents("allowances")) == len(before) + 1


async def test_an_invitation_grants_the_role_as_it_is_when_accepted(
    visitors: Visitors, root: Visitor
) -> None:
    await Role.add("editor", "", [Permission.POSTS_MODERATE], by=SYSTEM)
    link = await invitation_link(visitors, root, "editor")
    editor = await role_named("editor")
    await editor.edit(name="reader", description="", permissions=[], by=SYSTEM)
    bob = visitors.anonymous()
    assert "reader" in (await bob.get(link)).text
    assert (await accept(bob, link)).status == 303
    me = await bob.me()
    assert me is not None
    assert (me["roles"], me["permissions"]) == (["member", "reader"], ["posts.write"])
    assert await active_administrators() == 1
