"""The headers of every answer, whatever it says (ASVS 3.3, 3.4, 4.1.1, 13.4, 14.3.2)."""

import re
from secrets import token_urlsafe

import httpx
import pytest
from pydantic import SecretStr
from quart import Quart

from quartapp.settings import Settings
from tests.application import Shared
from tests.people import Server
from tests.routes.conftest import ORIGIN, Answer, Town

CSP = "Content-Security-Policy"


@pytest.fixture
async def deployed(shared: Shared, settings: Settings, production: bool) -> Quart:
    """The application as it is deployed, or as it is developed."""
    update = {"bcrypt_cost": 10, "secret_key": SecretStr("0123456789abcdef" * 4)}
    if production:
        update |= {"quartapp_env": "production", "base_url": "https://localhost"}
        settings = settings.model_copy(update=update)
    return await shared.app(settings)


async def every_kind_of_answer(town: Town, monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    async def fail() -> None:
        raise RuntimeError

    nobody, member = town.nobody(), await town.member()
    monkeypatch.setitem(town.app.view_functions, "health.alive", fail)
    big = {"title": "x" * 70_000}
    answers = {
        "page": await nobody.get("/login"),
        "own page": await member.get("/account"),
        "redirect": await nobody.get("/account"),
        "after a post": await member.post("/posts/new", title="A", body="B"),
        "json": await member.get("/api/me"),
        "json refused": await nobody.get("/api/me"),
        "another site": await member.send("/posts/new", {}, {"Origin": "null"}),
        "not allowed": await member.get("/admin/users"),
        "not found": await nobody.get("/nowhere"),
        "wrong method": await nobody.ask("TRACE", "/posts"),
        "gone": await nobody.get("/setup/x"),
        "too large": await member.send("/posts/new", big),
        "invalid": await member.post("/posts/new", title="", body=""),
        "failed": await nobody.get("/livez"),
        "health": await nobody.get("/readyz"),
        "options": await nobody.ask("OPTIONS", "/posts"),
        "static": await nobody.get("/static/app.css"),
        "no such file": await nobody.get("/static/nothing.css"),
        "outside of static": await nobody.get("/static/../settings.py"),
    }
    statuses = {answer.status for answer in answers.values()}
    assert statuses == {200, 302, 303, 401, 403, 404, 405, 410, 413, 422, 500}
    return answers


@pytest.mark.parametrize("production", [False, True])
async def test_every_answer_is_hardened(
    deployed: Quart, production: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    town = Town(deployed, "https" if production else "http")
    for kind, answer in (await every_kind_of_answer(town, monkeypatch)).items():
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
async def test_cookies_in_production_are_bound_to_this_host_and_to_tls(deployed: Quart) -> None:
    town = Town(deployed, "https")
    await town.account("ada")
    visitor = town.nobody()
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


async def test_the_token_is_in_its_cookie_and_nowhere_else(app: Quart) -> None:
    ada = await Town(app).member()
    for path in ("/", "/account", "/account/sessions", "/api/me"):
        answer = await ada.get(path)
        assert ada.token.partition(".")[0].strip('"') not in answer.text + str(answer.headers)


async def test_a_versioned_file_is_kept_for_ever_and_another_is_asked_for(app: Quart) -> None:
    nobody = Town(app).nobody()
    page = await nobody.get("/login")
    found = re.search(r'href="(/static/app\.css\?v=\w+)"', page.text)
    assert found
    kept = await nobody.get(found[1])
    assert kept.status == 200
    assert "immutable" in kept.headers["Cache-Control"]
    assert "max-age=31536000" in kept.headers["Cache-Control"]
    assert (await nobody.get("/static/app.css")).headers["Cache-Control"] == "no-cache"
    assert "immutable" not in (await nobody.get("/static/none.css?v=1")).headers["Cache-Control"]


async def test_a_script_is_the_same_for_everybody(app: Quart) -> None:
    ada = await Town(app).member()
    path = "/static/live.js"
    mine, theirs = await ada.get(path), await Town(app).nobody().get(path)
    assert mine.text == theirs.text
    assert "Set-Cookie" not in mine.headers


async def test_the_visit_cookie_stays_below_4096_bytes(app: Quart) -> None:
    """Whatever messages wait for the next page: a browser would drop the cookie."""
    town = Town(app)
    root = await town.admin()
    token = await root.csrf_token()
    # 24 random bytes each, which no compression makes shorter.
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
async def test_no_origin_is_let_in_to_read(app: Quart, origin: str) -> None:
    ada = await Town(app).member()
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
async def test_what_a_client_claims_of_its_way_here_is_in_no_answer(
    app: Quart, headers: dict[str, str]
) -> None:
    nobody = Town(app).nobody()
    answer = await nobody.get("/account", headers=headers)
    assert answer.location == "/login?next=%2Faccount"
    page = await nobody.get("/login", headers=headers)
    assert "evil.example" not in page.text + str(page.headers)
    assert "203.0.113.9" not in page.text
    assert "secure" not in str(page.headers).lower().split("set-cookie", 1)[1]


async def test_pages_whose_address_opens_something_send_no_referrer(app: Quart) -> None:
    rules = [rule for rule in app.url_map.iter_rules() if "token" in rule.arguments]
    assert len(rules) >= 4
    for rule in rules:
        answer = await Town(app).nobody().get(rule.rule.replace("<token>", "t" * 43))
        assert answer.headers["Referrer-Policy"] == "no-referrer", rule


async def test_a_worker_says_nothing_of_what_it_is_made_of(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        for answer in (await client.get("/"), await client.get("/nowhere")):
            assert "Server" not in answer.headers
            assert not re.search(r"(?i)hypercorn|quart/|python", str(answer.headers))
