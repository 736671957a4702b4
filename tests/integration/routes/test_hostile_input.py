"""Input that no page of this site sends: query operators, invalid ids, duplicate fields.

ASVS 1.2.4, 2.2.1, 8.2.2, 15.3.7.
"""

import json
from urllib.parse import quote

import pytest
from bson import ObjectId

from quartapp.models import Post
from quartapp.models.base.actor import Actor
from tests.conftest import long
from tests.integration.routes.conftest import (
    ORIGIN,
    Visitor,
    Visitors,
    contents,
    documents,
    user_named,
)
from tests.integration.routes.permission_matrix import MATRIX
from tests.integration.routes.requests import path

PARTS = [
    "x",
    "'",
    '"><script>alert(1)</script>',
    "$ne",
    "{$ne:null}",
    '{"$gt":""}',
    "%00",
    "%ff%fe",
    "%0d%0aSet-Cookie:a=b",
    "%E2%80%AE",
    "..%2f..%2fetc%2fpasswd",
    "%5B%24ne%5D",
    "0" * 24,
    "g" * 24,
    "-1",
    ".*",
    "\N{SNAKE}",
    "a" * 3000,
]
CURSORS = [
    *PARTS,
    "9" * 40,
    "-5",
    "\N{SUPERSCRIPT TWO}",
    f"2026-01-01T00:00:00_{ObjectId()}",
    f"2026-01-01T00:00:00%2B00:00_{ObjectId()}",
    f"0001-01-01T00:00:00%2B14:00_{ObjectId()}",
    f"9999-12-31T23:59:59-14:00_{ObjectId()}",
    f"2026-01-01T00:00:00%2B00:00_{'g' * 24}",
    "_",
]


PARAMETERS = (
    *("after", "before", "q", "ended", "next", "v", "role", "status", "factor", "sort", "person"),
    *("kind", "ip", "since", "until", "online", "format", "user", "users", "action"),
)


async def test_an_unknown_id_in_a_path_is_404(root: Visitor) -> None:
    wrong = {}
    before = await contents()
    for row in MATRIX:
        # A link with an unknown token is 410.
        if "<" not in row.rule or "<token>" in row.rule:
            continue
        for part in PARTS:
            address = path(row, dict.fromkeys(_names(row.rule), quote(part, safe="%")))
            if row.method == "POST":
                answer = await root.post(address, role="x", name="x", title="x", body="x")
            else:
                answer = await root.get(address)
            if answer.status != 404:
                wrong[f"{row} {part[:40]}"] = answer.status
    assert wrong == {}
    assert await contents() == before


def _names(rule: str) -> list[str]:
    return [part.split(">")[0].split(":")[-1] for part in rule.split("<")[1:]]


@pytest.mark.parametrize("share", [0, long(1), long(2)])
async def test_an_invalid_query_breaks_no_page(root: Visitor, share: int) -> None:
    """A run sends a third of the cursors to each page, the next page gets the next ones."""
    pages = [path(row, {}) for row in MATRIX if row.method == "GET" and "<" not in row.rule]
    wrong = {}
    for number, page in enumerate(pages):
        for value in [quote(cursor, safe="%") for cursor in CURSORS[(number + share) % 3 :: 3]]:
            query = "&".join(f"{name}={value}" for name in PARAMETERS)
            answer = await root.get(f"{page}?{query}")
            if answer.status >= 500:
                wrong[f"{page} {value[:50]}"] = answer.status
        for query in ("after[$gt]=&q[$ne]=&ended[$ne]=", "after=a&after=b&q=a&q=b", "=&&;=%"):
            assert (await root.get(f"{page}?{query}")).status < 500, (page, query)
    assert wrong == {}


async def test_a_search_takes_the_text_literally(root: Visitor) -> None:
    for text in (".*", ".*(", "^", "(a+)+$", "$ne", "\\", "[", "\uffff"):
        answer = await root.ask("GET", "/admin/users", query_string={"q": text})
        assert answer.status == 200, text
        assert "/admin/users/root" not in answer.links, text


CREDENTIALS = [
    {"login[$ne]": "", "password[$ne]": ""},
    {"login": '{"$ne": null}', "password": '{"$ne": null}'},
    {"login[$regex]": ".*", "password": "correct horse battery staple"},
    {"login": ".*", "password": "correct horse battery staple"},
    {"login": "ad", "password": "correct horse battery staple"},
    {"login": ["nobody", "ada"], "password": "correct horse battery staple"},
    {"login": "ada", "password": ["wrong", "correct horse battery staple"]},
    {"login": "ada\0", "password": "correct horse battery staple"},
    {"login": "ada", "password": "correct horse battery staple\0"},
    {"login": "ada", "password": "x" * 50_000},
    {"login": "a" * 50_000, "password": "x"},
    {},
]


async def test_a_query_operator_signs_no_user_in(ada: Visitor) -> None:
    anonymous = ada.another_device()
    for fields in CREDENTIALS:
        answer = await anonymous.post("/login", **fields)
        assert answer.status == 422, fields
        assert await anonymous.me() is None, fields


async def test_the_first_of_duplicate_fields_is_used(ada: Visitor) -> None:
    answer = await ada.post("/posts/new", title=["first", "second"], body=["one", "two"])
    assert answer.status == 303
    (post,) = await documents("posts")
    assert (post["title"], post["body"]) == ("first", "one")
    stale = await ada.csrf_token()
    await ada.post("/logout")
    await ada.sign_in()
    token = await ada.csrf_token()
    doubled = {"csrf_token": [stale, token], "title": "A", "body": "B"}
    assert (await ada.send("/posts/new", doubled)).status == 422


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/xml", "x"])
async def test_a_body_that_is_not_a_form_is_refused(ada: Visitor, kind: str) -> None:
    token = await ada.csrf_token()
    body = json.dumps({"csrf_token": token, "title": "A", "body": "B"})
    headers = {"Origin": ORIGIN, "Content-Type": kind}
    without = await ada.ask("POST", "/posts/new", data=body, headers=headers)
    assert without.status == 422
    headers["X-CSRF-Token"] = token
    answer = await ada.ask("POST", "/posts/new", data=body, headers=headers)
    assert answer.status == 422
    assert await documents("posts") == []


@pytest.mark.parametrize(
    "body",
    [b"--b\r\nbroken", b"", b"--b--", b'--b\r\nContent-Disposition: form-data; name="a"\r\n'],
)
async def test_a_broken_multipart_body_is_a_client_error(ada: Visitor, body: bytes) -> None:
    headers = {"Origin": ORIGIN, "Content-Type": "multipart/form-data; boundary=b"}
    answer = await ada.ask("POST", "/posts/new", data=body, headers=headers)
    assert 400 <= answer.status < 500


async def test_a_form_with_too_many_fields_is_a_client_error(ada: Visitor) -> None:
    fields = {f"f{number}": "x" for number in range(2000)}
    answer = await ada.post("/posts/new", **fields)
    assert 400 <= answer.status < 500


async def test_bytes_that_are_not_utf8_are_replaced_or_refused(ada: Visitor) -> None:
    token = (await ada.csrf_token()).replace("=", "%3D")
    answer = await ada.ask(
        "POST",
        "/posts/new",
        data=f"csrf_token={token}&title=%ff%fe&body=%ed%a0%80".encode(),
        headers={"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status in (303, 422)


HEADERS = [
    {"User-Agent": "<script>alert(1)</script>\x1b[31m"},
    {"User-Agent": "A" * 20_000},
    {"User-Agent": ""},
    {"Referer": "http://[broken"},
    {"Referer": "javascript:alert(1)"},
    {"Cookie": "quartapp_session=x; quartapp_session=y; quartapp_visit={}"},
    {"Cookie": "=;;=\xff"},
    {"Accept-Language": "$" * 5000},
]


async def test_no_header_breaks_a_page(anonymous: Visitor) -> None:
    for headers in HEADERS:
        for address in ("/login", "/nowhere", "/account"):
            answer = await anonymous.get(address, headers=headers)
            assert answer.status < 500, (address, headers)
            assert "<script>alert" not in answer.text


async def test_markup_in_a_user_agent_is_escaped(visitors: Visitors) -> None:
    await visitors.member("ada")
    other = Visitor(visitors.app, "ada")
    token = await other.csrf_token()
    headers = {"Origin": ORIGIN, "User-Agent": "Mozilla/5.0 <img src=x onerror=alert(1)> Firefox/1"}
    fields = {"csrf_token": token, "login": "ada", "password": other.password}
    assert (await other.send("/login", fields, headers)).status == 303
    page = await other.get("/account/sessions")
    assert "<img" not in page.text


async def test_a_json_answer_has_no_callback(ada: Visitor) -> None:
    answer = await ada.get("/api/me?callback=alert&jsonp=alert")
    assert answer.headers["Content-Type"].startswith("application/json")
    assert "alert" not in answer.text


async def test_ids_of_another_user_give_no_access(visitors: Visitors, ada: Visitor) -> None:
    bob = await visitors.member("bob")
    by = Actor((await user_named("bob")).id, "bob")
    post = await Post.write("Bob's", "text", by=by)
    before = await contents()
    for address in (f"/posts/{post.id}/edit", f"/posts/{post.id}/delete"):
        assert (await ada.post(address, title="A", body="B")).status == 403
    assert (await ada.get(f"/posts/{post.id}/edit")).status == 403
    assert await contents() == before
    assert (await bob.get(f"/posts/{post.id}/edit")).status == 200
