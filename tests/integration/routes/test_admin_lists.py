"""The admin pages for roles, active sessions and the audit log."""

import re
from datetime import timedelta

import pytest
from beanie import PydanticObjectId

from quartapp import clock
from quartapp.activities import ROLE_EDITED
from quartapp.models import Event, Session
from quartapp.models.base.references import user_ref
from quartapp.models.base.tokens import new_token
from quartapp.policy import Permission
from quartapp.routes.sessions import admin as admin_sessions
from tests.integration.routes.conftest import (
    Visitor,
    Visitors,
    documents,
    pages,
    role_named,
    user_named,
)


async def roles() -> dict[str, list[str]]:
    return {role["name"]: role["permissions"] for role in await documents("roles")}


async def test_a_role_is_created_edited_and_deleted(visitors: Visitors, root: Visitor) -> None:
    before = await roles()
    answer = await root.post(
        "/admin/roles/new",
        name="editor",
        description="Words.",
        permissions=["posts.moderate", "users.read"],
    )
    assert (answer.status, answer.location) == (303, "/admin/roles")
    assert (await roles())["editor"] == ["posts.moderate", "users.read"]
    await visitors.account("bob", await role_named("editor"))
    eve = await visitors.signed_in("eve", await role_named("editor"))
    answer = await root.post(
        "/admin/roles/editor", name="author", description="", permissions=["posts.write"]
    )
    assert answer.status == 303
    me = await eve.me()
    assert me is not None
    assert (me["roles"], me["permissions"]) == (["author"], ["posts.write"])
    page = await root.get("/admin/roles")
    assert "author" in page.text
    answer = await root.post("/admin/roles/AUTHOR/delete")
    assert answer.status == 303
    assert "Users who had it: 2." in (await root.get(answer.location)).text
    assert await roles() == before
    assert await eve.me() is None
    assert "root deleted a role" in (await eve.get("/login")).text


async def test_a_role_without_ticked_boxes_has_no_permission(root: Visitor) -> None:
    await root.post("/admin/roles/new", name="editor", permissions=["posts.write"])
    assert (await root.post("/admin/roles/editor", name="editor")).status == 303
    assert (await roles())["editor"] == []


REFUSED: list[tuple[str, dict[str, str | list[str]]]] = [
    ("name", {"name": ""}),
    ("name", {"name": "Moderator"}),
    ("name", {"name": "two words"}),
    ("name", {"name": "x" * 33}),
    ("name", {"name": "a\0b"}),
    ("name", {"name": "a/b"}),
    ("description", {"description": "x" * 201}),
    ("description", {"description": "a\x1bb"}),
    ("description", {"description": "a\u202eb"}),
    ("permissions", {"permissions": "everything"}),
    ("permissions", {"permissions": ["posts.write", "$ne"]}),
]


async def test_an_invalid_role_shows_a_field_error_and_stores_nothing(root: Visitor) -> None:
    await root.post("/admin/roles/new", name="editor")
    before = await roles()
    good = {"name": "writer", "description": "Words.", "permissions": ["posts.write"]}
    for field, fields in REFUSED:
        typed = {**good, **fields}
        for page in ("/admin/roles/new", "/admin/roles/editor"):
            answer = await root.post(page, **typed)
            assert answer.status == 422, (page, fields)
            assert answer.error(field), (page, fields)
            for kept in {"name", "description"} - {field}:
                assert answer.fields[kept] == typed[kept]
    assert await roles() == before


@pytest.mark.parametrize(
    ("name", "fields", "what"),
    [
        ("admin", {"name": "admin", "permissions": ["posts.write"]}, "changed"),
        ("admin", {"name": "boss", "permissions": []}, "changed"),
        ("member", {"name": "people", "permissions": ["posts.write"]}, "renamed"),
        ("admin", None, "deleted"),
        ("moderator", None, "deleted"),
        ("Member", None, "deleted"),
    ],
)
async def test_built_in_roles_cannot_be_changed_or_deleted_on_their_page(
    root: Visitor, name: str, fields: dict[str, str | list[str]] | None, what: str
) -> None:
    before = await roles()
    address = f"/admin/roles/{name}"
    answer = await root.post(address, **fields) if fields else await root.post(f"{address}/delete")
    assert answer.status == 422
    assert f"cannot be {what}" in answer.text
    assert await roles() == before
    assert await root.me() is not None


async def test_the_permissions_of_the_member_role_can_be_changed(
    root: Visitor, ada: Visitor
) -> None:
    assert (await root.post("/admin/roles/member", name="member")).status == 303
    me = await ada.me()
    assert me is not None
    assert me["permissions"] == []
    assert (await ada.get("/posts/new")).status == 403


async def test_an_unknown_role_is_404(root: Visitor) -> None:
    assert (await root.get("/admin/roles/nothing")).status == 404
    assert (await root.post("/admin/roles/nothing", name="x")).status == 404
    assert (await root.post("/admin/roles/nothing/delete")).status == 404


async def test_every_valid_role_name_has_a_page(root: Visitor) -> None:
    for name in ("new", "NEW", "delete", "a", "1.2_3-4"):
        answer = await root.post("/admin/roles/new", name=name)
        if answer.status == 422:
            assert answer.error("name")
            continue
        page = await root.get(f"/admin/roles/{name}")
        assert page.fields["name"] == name
        assert f'href="/admin/roles/{name}/delete"' in page.text


async def test_the_audit_log_is_paginated_newest_first(root: Visitor) -> None:
    admin = await user_named("root")
    rows = [
        Event(verb=ROLE_EDITED.audit_name, actor=user_ref(admin.id), details={"role": f"r{n:03}x"})
        for n in range(120)
    ]
    await Event.insert_many(rows)
    texts = [page.text for page in await pages(root, "/admin/events")]
    shown = [[n for n in range(120) if f"r{n:03}x" in text] for text in texts]
    assert [len(numbers) for numbers in shown[:2]] == [50, 50]
    assert sorted(n for numbers in shown for n in numbers) == list(range(120))
    assert "r119x" in texts[0]
    assert texts[0].index("r119x") < texts[0].index("r118x")


async def test_active_sessions_are_filtered_by_user_address_and_open_pages(
    visitors: Visitors, root: Visitor
) -> None:
    ada, bob = await visitors.signed_in("ada"), await visitors.signed_in("bob")
    sessions = {each.username: PydanticObjectId(await each.session_id()) for each in (ada, bob)}
    await Session.change({"_id": sessions["ada"]}, {"$set": {"ip": "192.0.2.7"}})
    until = clock.now() + timedelta(minutes=1)
    await Session.mark_opened({sessions["bob"]: "/posts"}, worker="w1", until=until)

    async def listed(query: str) -> list[str]:
        page = await root.get(f"/admin/sessions?{query}")
        assert page.status == 200
        return [name for name in ("ada", "bob", "root") if f"/admin/users/{name}" in page.links]

    assert await listed("") == ["ada", "bob", "root"]
    assert await listed("person=ADA") == ["ada"]
    assert await listed("ip=192.0.2.7") == ["ada"]
    assert await listed("online=1") == ["bob"]
    assert await listed("online=1&person=ada") == []
    page = (await root.get("/admin/sessions?online=1")).text
    assert "/posts" in page
    assert "worker w1" in page


async def test_invalid_filters_of_sessions_are_named_and_kept(root: Visitor) -> None:
    page = await root.get("/admin/sessions?person=nobody&ip=there")
    assert page.status == 200
    assert "There is no user with this name." in page.error("person")
    assert "Enter an IP address" in page.error("ip")
    assert (page.fields["person"], page.fields["ip"]) == ("nobody", "there")
    assert "No sessions are shown" in page.text


async def test_filtered_sessions_are_paginated(
    visitors: Visitors, root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_sessions, "PAGE", 2)
    for number in range(5):
        await visitors.signed_in(f"user{number}")
    found = await pages(root, "/admin/sessions?ip=127.0.0.1")
    rows = [row for page in found for row in re.findall(r'id="session-(\w+)"', page.text)]
    assert len(rows) == len(set(rows)) == 6


async def test_active_sessions_are_paginated_by_last_use(visitors: Visitors, root: Visitor) -> None:
    ada = await visitors.account("ada")
    now = clock.now()
    sessions = []
    for number in range(60):
        # Pairs have the same time of last use, so the cursor must also compare ids.
        seen = now - timedelta(seconds=number // 2)
        sessions.append(
            Session(
                digest=new_token()[1],
                user=user_ref(ada.id),
                device=f"Device {number:02}.",
                created_at=now,
                seen_at=seen,
                expires_at=now + timedelta(hours=1),
                idle_seconds=1800,
                confirmed_at=now,
                credential="x",
            )
        )
    await Session.insert_many(sessions)
    texts = [page.text for page in await pages(root, "/admin/sessions")]
    shown = [[n for n in range(60) if f"Device {n:02}." in text] for text in texts]
    assert len(texts) == 2
    assert sorted(n for numbers in shown for n in numbers) == list(range(60))
    assert max(shown[0]) // 2 <= min(shown[1]) // 2


async def test_an_ended_session_is_not_listed_as_active(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    assert "/admin/users/ada" in (await root.get("/admin/sessions")).links
    past = clock.now() - timedelta(seconds=1)
    user = await user_named("ada")
    await Session.change_all({"user.$id": user.id}, {"$set": {"expires_at": past}})
    assert "/admin/users/ada" not in (await root.get("/admin/sessions")).links
    assert await ada.me() is None


async def test_events_read_allows_only_the_audit_log(visitors: Visitors) -> None:
    auditor = await visitors.with_permissions("auditor", Permission.EVENTS_READ)
    assert (await auditor.get("/admin/events")).status == 200
    for page in ("users", "roles", "sessions"):
        assert (await auditor.get(f"/admin/{page}")).status == 403
