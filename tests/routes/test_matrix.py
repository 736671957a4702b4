"""Every route is in the table, and the table is true (ASVS 8.2.1, 8.3.1, 3.5.3, 4.1.4)."""

from collections.abc import Mapping
from urllib.parse import urlencode

from bson import json_util
from quart import Quart
from quart.testing.connections import WebsocketResponseError

from quartapp.models.accounts.one_time_token import Purpose
from quartapp.models.base.references import linked_id
from quartapp.policy import Permission
from tests.routes.authenticator import half_way
from tests.routes.conftest import (
    ORIGIN,
    Answer,
    Town,
    Visitor,
    contents,
    documents,
    role_named,
    the_user,
)
from tests.routes.matrix import MATRIX, POSTS, Row
from tests.routes.scenes import (
    a_link,
    enough,
    filled,
    form,
    owning,
    path,
    returning,
    scene,
    something_strange,
    unverify,
)

PERMISSIONS = {permission.value for permission in Permission}
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


async def drive(visitor: Visitor, row: Row, parts: Mapping[str, str], name: str = "eve") -> Answer:
    if row.method == "POST":
        return await visitor.post(path(row, parts), **await filled(row, visitor, name))
    return await visitor.get(path(row, parts))


async def knock(visitor: Visitor) -> int:
    """What a socket's handshake is answered with; 101 when it is let in."""
    async with visitor.client.websocket("/ws", headers={"Origin": ORIGIN}) as socket:
        try:
            assert (await socket.receive_json())["type"] == "hello"
        except WebsocketResponseError as refused:
            return refused.response.status_code
    return 101


def test_the_table_and_the_routes_name_each_other(app: Quart) -> None:
    routes = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (["WS"] if rule.websocket else (rule.methods or set()) - {"HEAD", "OPTIONS"})
    }
    table = {(row.method, row.rule) for row in MATRIX}
    assert routes - table == set(), "routes that nobody has classified"
    assert table - routes == set(), "rows without a route"


def test_each_requirement_of_the_table_is_one_that_is_driven_here() -> None:
    for row in MATRIX:
        permission = row.needs.removeprefix("author or ")
        assert permission in PERMISSIONS | {"anyone", "signed in", "author", "returning"}, row


async def test_nobody_is_led_to_the_sign_in_page_and_back(town: Town) -> None:
    _, parts = await scene(town)
    nobody, wrong = town.nobody(), {}
    before = await contents()
    for row in MATRIX:
        if row.needs == "anyone" or row.method == "WS":
            continue
        answer = await drive(nobody, row, parts)
        if row.rule.startswith("/api/"):
            expected = (401, "")
        else:
            here = path(row, parts)
            expected = (302, f"/login?{urlencode({'next': here})}")
        if (answer.status, answer.location) != expected:
            wrong[str(row)] = (answer.status, answer.location)
    assert wrong == {}
    assert await knock(nobody) == 401
    assert await contents() == before


async def test_one_permission_short_is_403_and_the_page_names_it(town: Town) -> None:
    _, parts = await scene(town)
    short = {
        permission.value: await town.holder(f"no-{permission}", *(set(Permission) - {permission}))
        for permission in Permission
    }
    stranger = await town.holder("stranger", *Permission)
    before = await contents()
    wrong = {}
    for row in MATRIX:
        permission = row.needs.removeprefix("author or ")
        if permission in ("anyone", "signed in", "returning"):
            continue
        answer = await drive(short.get(permission, stranger), row, parts)
        named = row.needs == "author" or permission in answer.text
        if answer.status != 403 or not named:
            wrong[str(row)] = answer.status
    assert wrong == {}
    assert await contents() == before


async def test_exactly_what_the_table_says_is_enough(town: Town) -> None:
    wrong = {}
    # Reading changes nothing, so that all rows that read share their scene and their visitors. They
    # come first, because each scene makes the older links for the first administrator void.
    shared = await scene(town, "author")
    readers: dict[str, Visitor] = {}
    for number, row in enumerate(sorted(MATRIX, key=reads_only, reverse=True)):
        reads = reads_only(row)
        author, parts = shared if reads else await scene(town, f"author-{number}")
        visitor = readers.get(row.needs) if reads else None
        if visitor is None:
            visitor = await able(town, row, author, f"visitor-{number}")
        if reads:
            readers[row.needs] = visitor
        if row.needs in PERMISSIONS | {"signed in"}:
            parts = await with_own(visitor, parts)
        if row.method == "WS":
            assert await knock(visitor) == 101
            continue
        own = row.rule.startswith("/account/")
        parts = await owning(visitor, row, parts)
        answer = await drive(visitor, row, parts, (visitor if own else author).username)
        if answer.status != row.done:
            wrong[str(row)] = answer.status
    assert wrong == {}


def reads_only(row: Row) -> bool:
    return row.method != "POST" and not row.rule.startswith("/login/factor")


async def able(town: Town, row: Row, author: Visitor, name: str) -> Visitor:
    """Return a visitor who fulfils what the table requires for the row, and no more."""
    permission = row.needs.removeprefix("author or ")
    if row.rule.startswith("/login/factor"):
        return await half_way(town, name)
    if row.needs == "anyone":
        return town.nobody()
    if row.needs == "author":
        return author
    if row.needs == "returning":
        return await returning(town, name)
    visitor = await town.holder(name, *(enough(row) if permission in PERMISSIONS else []))
    await unverify(visitor)
    await a_link(visitor, Purpose.CONFIRM)
    return visitor


async def with_own(visitor: Visitor, parts: Mapping[str, str]) -> dict[str, str]:
    """Return the parts of the paths, with a session and an event that are the visitor's own."""
    me = await visitor.me()
    assert me is not None
    event = await something_strange(visitor)
    return {**parts, "session_id": me["session"], "event_id": event}


async def test_other_methods_are_405_for_those_who_may_do_everything(
    town: Town, root: Visitor
) -> None:
    _, parts = await scene(town)
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


async def test_reading_changes_nothing(town: Town, root: Visitor) -> None:
    _, parts = await scene(town, "eve")
    readable = [path(row, parts) for row in MATRIX if row.method == "GET"]
    # Unread notices and the like must be there to be left alone.
    before = await contents()
    seen: set[str] = set()
    waiting = [*readable]
    while waiting:
        here = waiting.pop()
        if here in seen or here.startswith("#"):
            continue
        seen.add(here)
        head = await root.ask("HEAD", here)
        answer = await root.get(here)
        assert head.status == answer.status < 500, here
        waiting += answer.links
    assert len(seen) > len(readable)
    assert await contents() == before


async def test_no_form_stores_what_it_has_no_field_for(town: Town) -> None:
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
        author, parts = await scene(town, f"author-{number}")
        if row.needs in ("author", "signed in"):
            visitor = author
        elif row.needs == "anyone":
            visitor = town.nobody()
        elif row.needs == "returning":
            visitor = await returning(town, f"visitor-{number}")
        else:
            visitor = await town.holder(f"visitor-{number}", *Permission)
        parts = await owning(visitor, row, parts)
        fields = await filled(row, visitor, author.username)
        answer = await visitor.post(path(row, parts), **{**extra, **fields})
        if answer.status != row.done:
            wrong[str(row)] = answer.status
    assert wrong == {}
    made = await the_user(form(Row("POST", "/register", ""), "author-0")["username"])
    assert [linked_id(link) for link in made.roles] == [(await role_named("member")).id]
    stored = json_util.dumps([await documents(name) for name in await contents()])
    assert [word for word in ("planted", planted, "471147114711") if word in stored] == []
