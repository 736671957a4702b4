"""Every route behaves as the permission matrix says (ASVS 8.2.1, 8.3.1, 3.5.3, 4.1.4)."""

from collections.abc import Mapping
from urllib.parse import urlencode

from bson import json_util
from quart import Quart
from quart.testing.connections import WebsocketResponseError

from quartapp.models.accounts.one_time_token import Purpose
from quartapp.models.base.references import linked_id
from quartapp.policy import Permission
from tests.integration.routes.authenticator import before_second_step
from tests.integration.routes.conftest import (
    ORIGIN,
    Answer,
    Visitor,
    Visitors,
    contents,
    documents,
    role_named,
    user_named,
)
from tests.integration.routes.permission_matrix import MATRIX, POSTS, Row
from tests.integration.routes.requests import (
    ask_for_role,
    author_with_content,
    form,
    form_with_code,
    issue_token,
    path,
    record_bulk_action,
    record_suspicious_event,
    sign_in_to_closed_account,
    sufficient_permissions,
    unverify,
    with_own_passkey,
)

PERMISSIONS = {permission.value for permission in Permission}
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


async def request(
    visitor: Visitor, row: Row, parts: Mapping[str, str], name: str = "eve"
) -> Answer:
    if row.method == "POST":
        return await visitor.post(path(row, parts), **await form_with_code(row, visitor, name))
    return await visitor.get(path(row, parts))


async def handshake(visitor: Visitor) -> int:
    """Return the status of a WebSocket handshake."""
    async with visitor.client.websocket("/ws", headers={"Origin": ORIGIN}) as socket:
        try:
            assert (await socket.receive_json())["type"] == "hello"
        except WebsocketResponseError as refused:
            return refused.response.status_code
    return 101


def test_every_route_is_in_the_matrix(app: Quart) -> None:
    routes = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (["WS"] if rule.websocket else (rule.methods or set()) - {"HEAD", "OPTIONS"})
    }
    table = {(row.method, row.rule) for row in MATRIX}
    assert routes - table == set(), "routes without a row"
    assert table - routes == set(), "rows without a route"


def test_each_requirement_of_the_matrix_is_known() -> None:
    for row in MATRIX:
        known = PERMISSIONS | {"anyone", "signed in", "author", "returning"}
        assert set(row.needs.split(" or ")) <= known, row


async def test_anonymous_visitors_are_redirected_to_sign_in(visitors: Visitors) -> None:
    _, parts = await author_with_content(visitors)
    anonymous, wrong = visitors.anonymous(), {}
    before = await contents()
    for row in MATRIX:
        if row.needs == "anyone" or row.method == "WS":
            continue
        answer = await request(anonymous, row, parts)
        if row.rule.startswith("/api/"):
            expected = (401, "")
        else:
            here = path(row, parts)
            expected = (302, f"/login?{urlencode({'next': here})}")
        if (answer.status, answer.location) != expected:
            wrong[str(row)] = (answer.status, answer.location)
    assert wrong == {}
    assert await handshake(anonymous) == 401
    assert await contents() == before


async def test_a_missing_permission_is_403_and_the_page_names_it(visitors: Visitors) -> None:
    _, parts = await author_with_content(visitors)
    wanted = {" or ".join(row.permissions) for row in MATRIX if row.permissions}
    short = {
        each: await visitors.with_permissions(
            f"without-{number}", *(set(Permission) - set(map(Permission, each.split(" or "))))
        )
        for number, each in enumerate(sorted(wanted))
    }
    stranger = await visitors.with_permissions("stranger", *Permission)
    before = await contents()
    wrong = {}
    for row in MATRIX:
        if row.needs in ("anyone", "signed in", "returning"):
            continue
        visitor = short.get(" or ".join(row.permissions), stranger)
        answer = await request(visitor, row, parts)
        named = not row.permissions or row.permissions[0] in answer.text
        if answer.status != 403 or not named:
            wrong[str(row)] = answer.status
    assert wrong == {}
    assert await contents() == before


async def test_the_permission_in_the_matrix_is_sufficient(visitors: Visitors) -> None:
    wrong = {}
    # Reading changes nothing, so all rows that read share their objects and their visitors. They
    # come first, because each new set of objects voids the older setup links.
    shared = await author_with_content(visitors, "author")
    readers: dict[str, Visitor] = {}
    for number, row in enumerate(sorted(MATRIX, key=reads_only, reverse=True)):
        reads = reads_only(row)
        author, parts = (
            shared if reads else await author_with_content(visitors, f"author-{number}", row.rule)
        )
        visitor = readers.get(row.needs) if reads else None
        if visitor is None:
            visitor = await permitted_visitor(visitors, row, author, f"visitor-{number}")
        if reads:
            readers[row.needs] = visitor
        if row.needs in PERMISSIONS | {"signed in"}:
            parts = await with_own(visitor, parts)
        if row.rule.startswith("/account/roles/requests/"):
            request_id = await ask_for_role(visitor.username, f"asked-{number}")
            parts = {**parts, "request_id": request_id}
        if row.method == "WS":
            assert await handshake(visitor) == 101
            continue
        own = row.rule.startswith("/account/")
        parts = await with_own_passkey(visitor, row, parts)
        answer = await request(visitor, row, parts, (visitor if own else author).username)
        if answer.status != row.done:
            wrong[str(row)] = answer.status
    assert wrong == {}


def reads_only(row: Row) -> bool:
    return row.method != "POST" and not row.rule.startswith("/login/factor")


async def permitted_visitor(visitors: Visitors, row: Row, author: Visitor, name: str) -> Visitor:
    """Return a visitor who fulfils the requirement of the row and no other."""
    if row.rule.startswith("/login/factor"):
        return await before_second_step(visitors, name)
    if row.needs == "anyone":
        return visitors.anonymous()
    if row.needs == "author":
        return author
    if row.needs == "returning":
        return await sign_in_to_closed_account(visitors, name)
    visitor = await visitors.with_permissions(
        name, *(sufficient_permissions(row) if row.permissions else [])
    )
    await unverify(visitor)
    await issue_token(visitor, Purpose.CONFIRM)
    return visitor


async def with_own(visitor: Visitor, parts: Mapping[str, str]) -> dict[str, str]:
    """Return the parts of the paths, with a session, an event and an action on several users that
    are the visitor's own."""
    me = await visitor.me()
    assert me is not None
    event = await record_suspicious_event(visitor)
    action = await record_bulk_action(visitor)
    return {**parts, "session_id": me["session"], "event_id": event, "bulk_id": action}


async def test_other_methods_are_405_for_administrators(visitors: Visitors, root: Visitor) -> None:
    _, parts = await author_with_content(visitors)
    headers = {"Origin": ORIGIN, "X-CSRF-Token": await root.csrf_token()}
    before = await contents()
    wrong = {}
    for rule in {row.rule for row in MATRIX if row.method != "WS"}:
        allowed = {row.method for row in MATRIX if row.rule == rule}
        for method in ["TRACE", *METHODS]:
            if method in allowed:
                continue
            answer = await root.ask(method, path(Row(method, rule, ""), parts), headers=headers)
            told = set(answer.headers.get("Allow", "").split(", ")) - {"HEAD", "OPTIONS"}
            if answer.status != 405 or told != allowed:
                wrong[f"{method} {rule}"] = (answer.status, told)
    assert wrong == {}
    assert await contents() == before


async def test_get_and_head_change_nothing(visitors: Visitors, root: Visitor) -> None:
    _, parts = await author_with_content(visitors, "eve")
    readable = [path(row, parts) for row in MATRIX if row.method == "GET"]
    # The digests include unread notifications, which reading must not change.
    before = await contents()
    seen: set[str] = set()
    waiting = [*readable]
    while waiting:
        here = waiting.pop()
        # An export of the audit log is recorded there.
        if here in seen or here.startswith(("#", "/admin/events/export")):
            continue
        seen.add(here)
        head = await root.ask("HEAD", here)
        answer = await root.get(here)
        assert head.status == answer.status < 500, here
        waiting += answer.links
    assert len(seen) > len(readable)
    assert await contents() == before


async def test_forms_ignore_unknown_fields(visitors: Visitors) -> None:
    planted = "5eed5eed5eed5eed5eed5eed"
    extra = {
        "_id": planted,
        "id": planted,
        "author": planted,
        "user": planted,
        "roles": ["planted", "admin"],
        "is_admin": "planted",
        "password_hash": "planted",
        "authz_version": "471147114711",
        "grants": "471147114711",
        "disabled_at": "planted",
        "$set": "planted",
    }
    wrong = {}
    for number, row in enumerate(POSTS):
        author, parts = await author_with_content(visitors, f"author-{number}", row.rule)
        if row.needs in ("author", "signed in"):
            visitor = author
        elif row.needs == "anyone":
            visitor = visitors.anonymous()
        elif row.needs == "returning":
            visitor = await sign_in_to_closed_account(visitors, f"visitor-{number}")
        else:
            visitor = await visitors.with_permissions(f"visitor-{number}", *Permission)
        parts = await with_own_passkey(visitor, row, parts)
        fields = await form_with_code(row, visitor, author.username)
        answer = await visitor.post(path(row, parts), **{**extra, **fields})
        if answer.status != row.done:
            wrong[str(row)] = answer.status
    assert wrong == {}
    made = await user_named(form(Row("POST", "/register", ""), "author-0")["username"])
    assert [linked_id(link) for link in made.roles] == [(await role_named("member")).id]
    stored = json_util.dumps([await documents(name) for name in await contents()])
    assert [word for word in ("planted", planted, "471147114711") if word in stored] == []
