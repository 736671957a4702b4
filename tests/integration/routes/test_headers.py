"""The headers of every answer (ASVS 3.3, 3.4, 4.1.1, 13.4, 14.3.2)."""

import re
from secrets import token_urlsafe

import httpx
import pytest
from pydantic import SecretStr
from quart import Quart

from quartapp.settings import Settings
from tests.application import Shared
from tests.integration.routes.conftest import ORIGIN, Answer, Visitors
from tests.people import Server

CSP = "Content-Security-Policy"


@pytest.fixture
async def deployed(shared: Shared, settings: Settings, production: bool) -> Quart:
    """The application in production or in development."""
    update = {"bcrypt_cost": 10, "secret_key": SecretStr("0123456789abcdef" * 4)}
    if production:
        update |= {"quartapp_env": "production", "base_url": "https://localhost"}
        settings = settings.model_copy(update=update)
    return await shared.app(settings)


async def every_kind_of_answer(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Answer]:
    async def fail() -> None:
        raise RuntimeError

    anonymous, member = visitors.anonymous(), await visitors.member()
    monkeypatch.setitem(visitors.app.view_functions, "health.alive", fail)
    big = {"title": "x" * 70_000}
    answers = {
        "page": await anonymous.get("/login"),
        "own page": await member.get("/account"),
        "redirect": await anonymous.get("/account"),
        "after a post": await member.post("/posts/new", title="A", body="B"),
        "json": await member.get("/api/me"),
        "json refused": await anonymous.get("/api/me"),
        "another site": await member.send("/posts/new", {}, {"Origin": "null"}),
        "not allowed": await member.get("/admin/users"),
        "not found": await anonymous.get("/nowhere"),
        "wrong method": await anonymous.ask("TRACE", "/posts"),
        "gone": await anonymous.get("/setup/x"),
        "too large": await member.send("/posts/new", big),
        "invalid": await member.post("/posts/new", title="", body=""),
        "failed": await anonymous.get("/livez"),
        "health": await anonymous.get("/readyz"),
        "options": await anonymous.ask("OPTIONS", "/posts"),
        "static": await anonymous.get("/static/app.css"),
        "no such file": await anonymous.get("/static/nothing.css"),
        "outside of static": await anonymous.get("/static/../settings.py"),
    }
    statuses = {answer.status for answer in answers.values()}
    assert statuses == {200, 302, 303, 401, 403, 404, 405, 410, 413, 422, 500}
    return answers


@pytest.mark.parametrize("production", [False, True])
async def test_every_answer_has_the_security_headers(
    deployed: Quart, production: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors = Visitors(deployed, "https" if production else "http")
    for kind, answer in (await every_kind_of_answer(visitors, monkeypatch)).items():
        headers = answer.headers
        policy = dict(part.strip().split(" ", 1) for part in headers[CSP].split(";"))
        assert "unsafe" not in headers[CSP], kind
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        for directive in ("object-src", "base-uri", "frame-ancestors"):
            assert policy[directive] == "'none'", kind
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] in ("same-origin", "no-referrer")
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        assert "X-Powered-By" not in headers
        is_static = kind in ("static", "no such file", "outside of static")
        assert ("no-store" in headers["Cache-Control"]) is not is_static, kind
        if answer.text:
            types = r"(text/(html|css|plain)|application/json)"
            assert re.match(types, headers["Content-Type"]), kind
            assert "json" in headers["Content-Type"] or "charset=utf-8" in headers["Content-Type"]
        transport = headers.get("Strict-Transport-Security", "")
        lasts = re.match(r"max-age=(\d+); includeSubDomains", transport)
        assert bool(lasts) is production, kind
        assert lasts is None or int(lasts[1]) >= 31_536_000


@pytest.mark.parametrize("production", [True])
async def test_production_cookies_are_bound_to_the_host_and_to_tls(deployed: Quart) -> None:
    visitors = Visitors(deployed, "https")
    await visitors.account("ada")
    visitor = visitors.anonymous()
    page = await visitor.get("/login")
    answer = await visitor.sign_in("ada")
    assert answer.status == 303
    cookies = [
        cookie
        for each in (page, answer, await visitor.post("/logout"))
        for cookie in each.headers.getlist("Set-Cookie")
    ]
    names = {"__Host-session", "__Host-visit", "__Host-browser"}
    assert {cookie.partition("=")[0] for cookie in cookies} == names
    for cookie in cookies:
        attributes = {part.strip() for part in cookie.split(";")[1:]}
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= attributes
        assert not any(attribute.startswith("Domain") for attribute in attributes)
        assert len(cookie.partition(";")[0]) <= 4096
    stored = '"__Host-timezone=%; path=/; max-age=31536000; samesite=lax; secure"'
    assert f"data-zone-cookie={stored}" in page.text
    visitor.client.set_cookie("localhost", "__Host-timezone", "Asia/Tokyo", secure=True)
    assert 'data-zone="Asia/Tokyo"' in (await visitor.get("/login")).text


async def test_the_session_token_appears_only_in_its_cookie(app: Quart) -> None:
    ada = await Visitors(app).member()
    for path in ("/", "/account", "/account/sessions", "/api/me"):
        answer = await ada.get(path)
        assert ada.token.partition(".")[0].strip('"') not in answer.text + str(answer.headers)


async def test_versioned_static_files_are_cached_and_others_revalidated(app: Quart) -> None:
    anonymous = Visitors(app).anonymous()
    page = await anonymous.get("/login")
    found = re.search(r'href="(/static/app\.css\?v=\w+)"', page.text)
    assert found
    kept = await anonymous.get(found[1])
    assert kept.status == 200
    assert "immutable" in kept.headers["Cache-Control"]
    assert "max-age=31536000" in kept.headers["Cache-Control"]
    assert (await anonymous.get("/static/app.css")).headers["Cache-Control"] == "no-cache"
    assert "immutable" not in (await anonymous.get("/static/none.css?v=1")).headers["Cache-Control"]


async def test_scripts_do_not_depend_on_the_user(app: Quart) -> None:
    ada = await Visitors(app).member()
    path = "/static/live.js"
    mine, theirs = await ada.get(path), await Visitors(app).anonymous().get(path)
    assert mine.text == theirs.text
    assert "Set-Cookie" not in mine.headers


async def test_the_visit_cookie_stays_below_4096_bytes(app: Quart) -> None:
    """A browser would drop a larger cookie, for instance one with many flashed messages."""
    visitors = Visitors(app)
    root = await visitors.admin()
    token = await root.csrf_token()
    # 24 random bytes each, which compression does not shorten.
    names = [f"a{token_urlsafe(24)[:30]}z" for _ in range(150)]
    for name in names:
        answer = await root.send("/admin/roles/new", {"csrf_token": token, "name": name})
        assert answer.status == 303
        for cookie in answer.headers.getlist("Set-Cookie"):
            assert len(cookie.partition(";")[0]) <= 4096
    page = (await root.get("/account")).text
    assert page.count("was created.") < 150
    assert f"The role {names[-1]} was created." in page, "the newest message is kept"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ORIGIN])
async def test_no_origin_may_read_answers_across_sites(app: Quart, origin: str) -> None:
    ada = await Visitors(app).member()
    for method in ("GET", "OPTIONS"):
        answer = await ada.ask(method, "/api/me", headers={"Origin": origin})
        assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": "evil.example"},
        {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9;host=evil.example;proto=https"},
    ],
    ids=lambda headers: "+".join(headers),
)
async def test_forwarded_headers_of_a_client_appear_in_no_answer(
    app: Quart, headers: dict[str, str]
) -> None:
    anonymous = Visitors(app).anonymous()
    answer = await anonymous.get("/account", headers=headers)
    assert answer.location == "/login?next=%2Faccount"
    page = await anonymous.get("/login", headers=headers)
    assert "evil.example" not in page.text + str(page.headers)
    assert "203.0.113.9" not in page.text
    assert "secure" not in str(page.headers).lower().split("set-cookie", 1)[1]


async def test_pages_with_a_token_in_the_url_send_no_referrer(app: Quart) -> None:
    rules = [rule for rule in app.url_map.iter_rules() if "token" in rule.arguments]
    assert len(rules) >= 4
    for rule in rules:
        answer = await Visitors(app).anonymous().get(rule.rule.replace("<token>", "t" * 43))
        assert answer.headers["Referrer-Policy"] == "no-referrer", rule


async def test_answers_do_not_name_the_server_software(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        for answer in (await client.get("/"), await client.get("/nowhere")):
            assert "Server" not in answer.headers
            assert not re.search(r"(?i)hypercorn|quart/|python", str(answer.headers))
