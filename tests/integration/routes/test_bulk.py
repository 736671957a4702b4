"""Actions on several users at once."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from quartapp.activities import SESSIONS_ENDED
from quartapp.models import Event, Role, User
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from quartapp.routes.accounts import bulk
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    contents,
    documents,
    role_named,
    roles_of,
    user_named,
)

BULK = "/admin/users/bulk"


async def result_of(visitor: Visitor, answer: Answer) -> dict[str, str]:
    """Return the outcome of each user from the stored document that the answer leads to."""
    assert answer.status == 303, answer.text
    assert answer.location.startswith("/receipts/bulk/")
    page = await visitor.get(answer.location)
    assert page.status == 200
    stored = (await documents("bulk_actions"))[-1]
    names = {user["_id"]: user["username"] for user in await documents("users")}
    return {names[each["user"]]: each["outcome"] for each in stored["results"]}


@pytest.fixture
async def bob(visitors: Visitors) -> Visitor:
    return await visitors.member("bob")


async def test_a_role_is_granted_to_several_users_and_revoked(
    root: Visitor, ada: Visitor, bob: Visitor
) -> None:
    fields: dict[str, Any] = {"users": ["ada", "BOB"], "role": "Moderator"}
    answer = await root.post(BULK, action="grant", **fields)
    assert await result_of(root, answer) == {"ada": "done", "bob": "done"}
    for visitor in (ada, bob):
        me = await visitor.me()
        assert me is not None
        assert me["roles"] == ["member", "moderator"]
    answer = await root.post(BULK, action="revoke", **fields)
    assert await result_of(root, answer) == {"ada": "done", "bob": "done"}
    assert [await ada.me(), await bob.me()] == [None, None]
    assert await roles_of("ada") == await roles_of("bob") == {"member"}


@pytest.mark.parametrize("action", ["end-sessions", "disable"])
async def test_sessions_of_all_selected_users_are_refused_afterwards(
    root: Visitor, ada: Visitor, bob: Visitor, visitors: Visitors, action: str
) -> None:
    zoe = await visitors.member("zoe")
    answer = await root.post(BULK, action=action, users=["ada", "bob"])
    assert [await ada.me(), await bob.me()] == [None, None]
    assert await zoe.me() is not None
    assert await result_of(root, answer) == {"ada": "done", "bob": "done"}
    again = await root.post(BULK, action=action, users=["ada", "bob"])
    assert await result_of(root, again) == {"ada": "unchanged", "bob": "unchanged"}


async def test_a_refusal_concerns_only_its_user(visitors: Visitors, ada: Visitor) -> None:
    half = await visitors.with_permissions("half", Permission.USERS_MANAGE, Permission.POSTS_WRITE)
    await visitors.with_permissions("auditor", Permission.EVENTS_READ)
    await Role.add("spare", "", [], by=SYSTEM)
    fields: dict[str, Any] = {"users": ["auditor", "ada"], "role": "spare", "action": "grant"}
    answer = await half.post(BULK, **fields)
    assert await result_of(half, answer) == {"auditor": "missing_permission", "ada": "done"}
    assert "events.read" in (await half.get(answer.location)).text
    assert await roles_of("auditor") == {"role-of-auditor"}
    assert "spare" in await roles_of("ada")


async def test_no_role_is_granted_that_has_more_permissions_than_the_administrator(
    visitors: Visitors, ada: Visitor
) -> None:
    half = await visitors.with_permissions("half", Permission.USERS_MANAGE, Permission.POSTS_WRITE)
    answer = await half.post(BULK, users=["ada"], action="grant", role="admin")
    assert await result_of(half, answer) == {"ada": "missing_permission"}
    assert await roles_of("ada") == {"member"}


async def test_the_permission_depends_on_the_action(visitors: Visitors, ada: Visitor) -> None:
    ends = await visitors.with_permissions(
        "ends", Permission.SESSIONS_MANAGE, Permission.POSTS_WRITE
    )
    for action in ("grant", "revoke", "disable"):
        for answer in (
            await ends.post(BULK, users=["ada"], action=action, role="member"),
            await ends.get(f"{BULK}?users=ada&action={action}&role=member"),
        ):
            assert answer.status == 403
            assert "users.manage" in answer.text
    assert await ada.me() is not None
    assert (await ends.get(f"{BULK}?users=ada&action=end-sessions")).status == 200
    assert (await ends.post(BULK, users=["ada"], action="end-sessions")).status == 303
    assert await ada.me() is None


async def test_an_old_authentication_asks_for_the_password_and_keeps_the_selection(
    root: Visitor, ada: Visitor, bob: Visitor
) -> None:
    await root.expire_authentication()
    fields: dict[str, Any] = {"users": ["ada", "bob"], "action": "disable"}
    answer = await root.post(BULK, **fields)
    assert answer.status == 422
    assert answer.text.count('name="users" value="') == 2
    assert await ada.me() is not None
    answer = await root.post(BULK, **fields, password=root.password)
    assert await result_of(root, answer) == {"ada": "done", "bob": "done"}


async def test_the_last_administrator_is_kept(visitors: Visitors, root: Visitor) -> None:
    await visitors.admin("other")
    preview = await root.get(f"{BULK}?users=root&users=other&action=disable")
    assert "These are all active administrators." in preview.text
    answer = await root.post(BULK, users=["root", "other"], action="disable")
    assert answer.status == 303
    stored = (await documents("bulk_actions"))[-1]
    # The actor comes last, so that the others are not left.
    assert [each["outcome"] for each in stored["results"]] == ["done", "last_administrator"]
    assert await root.me() is not None


async def test_ending_the_own_sessions_comes_last(root: Visitor, ada: Visitor) -> None:
    answer = await root.post(BULK, users=["root", "ada"], action="end-sessions")
    assert answer.status == 303
    assert [await root.me(), await ada.me()] == [None, None]
    assert (await root.get(answer.location)).status == 302
    assert (await root.sign_in()).status == 303
    assert await result_of(root, answer) == {"ada": "done", "root": "done"}


async def test_two_administrators_disabling_each_other_leave_one(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    other = await visitors.admin("other")
    await asyncio.gather(
        root.post(BULK, users=["ada", "other"], action="disable"),
        other.post(BULK, users=["ada", "root"], action="disable"),
    )
    users = {user["username"]: user["disabled_at"] for user in await documents("users")}
    assert users["ada"] is not None
    assert [users["root"], users["other"]].count(None) == 1
    outcomes = [
        each["outcome"] for row in await documents("bulk_actions") for each in row["results"]
    ]
    assert outcomes.count("done") == 2
    assert "pending" not in outcomes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action": "disable"}, "Select at least one user"),
        ({"users": ["ada"]}, "Select an action."),
        ({"users": ["ada"], "action": "promote"}, "Select an action."),
        ({"users": ["ada"], "action": "grant"}, "Select a role."),
        ({"users": ["ada"], "action": "grant", "role": "nothing"}, "This role does not exist."),
        ({"users": ["ada", "nobody"], "action": "disable"}, "These users do not exist: nobody."),
        ({"users": [f"u{n}" for n in range(101)], "action": "disable"}, "at most 100 users"),
    ],
)
async def test_an_invalid_selection_changes_nothing(
    root: Visitor, ada: Visitor, fields: dict[str, Any], message: str
) -> None:
    before = await contents()
    answer = await root.post(BULK, **fields)
    assert answer.status == 422
    assert message in answer.text
    assert await contents() == before


async def test_a_hundred_users_are_disabled_in_one_request(
    visitors: Visitors, root: Visitor
) -> None:
    names = [f"user{number:03}" for number in range(100)]
    for name in names:
        await visitors.account(name, await role_named("member"))
    answer = await root.post(BULK, users=names, action="disable")
    assert set((await result_of(root, answer)).values()) == {"done"}
    assert len(await documents("users", disabled_at=None)) == 1


async def test_sessions_that_ended_before_a_failure_are_refused_by_all_workers(
    root: Visitor, ada: Visitor, bob: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, waited = User.end_sessions, []

    async def fail_for_bob(user: User, *args: Any, **options: Any) -> Any:
        if user.username == "bob":
            raise AutoReconnect("the primary has stepped down")
        return await end(user, *args, **options)

    async def wait(event: Event | None = None) -> str:
        waited.append(event and event.verb)
        return ""

    monkeypatch.setattr(User, "end_sessions", fail_for_bob)
    monkeypatch.setattr(bulk, "wait_until_enforced", wait)
    answer = await root.post(BULK, action="end-sessions", users=["ada", "bob"])
    assert answer.status == 503
    assert waited == [SESSIONS_ENDED.audit]
    (stored,) = await documents("bulk_actions")
    assert [each["outcome"] for each in stored["results"]] == ["done", "pending"]


async def test_granting_a_role_that_has_an_end_removes_the_end(
    root: Visitor, ada: Visitor, bob: Visitor
) -> None:
    end = datetime(2031, 12, 31, 14, tzinfo=UTC)
    moderator = await role_named("moderator")
    await (await user_named("ada")).grant(moderator, by=SYSTEM, until=end)
    await (await user_named("bob")).grant(moderator, by=SYSTEM)
    preview = await root.get(f"{BULK}?users=ada&users=bob&action=grant&role=moderator")
    assert "1 user is affected. 1 user is skipped." in preview.text
    assert "Keeps the role, which would end on" in preview.text
    assert preview.text.count("Nothing to change.") == 1
    answer = await root.post(BULK, action="grant", users=["ada", "bob"], role="moderator")
    assert await result_of(root, answer) == {"ada": "done", "bob": "unchanged"}
    receipt = (await root.get(answer.location)).text
    assert receipt.count("had the role for a limited time, and now keeps it.") == 1
    assert (await user_named("ada")).ends == {}
    (event,) = await documents("events", verb="role.end_removed")
    assert event["details"] == {"role": "moderator", "end": end}
    assert await ada.me() is not None


async def test_the_preview_tells_what_happens_to_whom_and_changes_nothing(
    visitors: Visitors, root: Visitor, ada: Visitor, bob: Visitor
) -> None:
    await ada.another_device().sign_in_without_form(await user_named("ada"))
    await visitors.account("zoe")
    await visitors.wait_for_outbox()
    before = await contents()
    preview = await root.get(f"{BULK}?users=ada&users=bob&users=zoe&action=revoke&role=member")
    assert preview.status == 200
    assert "2 users are affected." in preview.text
    assert "1 user is skipped." in preview.text
    assert "3 active sessions will end, with 0 open tabs." in preview.text
    assert preview.text.count("Loses: posts.write") == 2
    assert "Nothing to change." in preview.text
    assert await contents() == before


async def test_only_the_actor_and_readers_of_the_audit_log_see_the_result(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    half = await visitors.with_permissions("half", *{*Permission} - {Permission.EVENTS_READ})
    address = (await half.post(BULK, users=["ada"], action="end-sessions")).location
    other = await visitors.with_permissions("other", *{*Permission} - {Permission.EVENTS_READ})
    assert (await half.get(address)).status == 200
    assert (await root.get(address)).status == 200
    assert (await other.get(address)).status == 404
    assert (await root.get("/receipts/bulk/507f1f77bcf86cd799439011")).status == 404
