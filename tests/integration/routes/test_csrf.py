"""A POST is accepted only from a page that this site has shown to its sender (ASVS 3.5)."""

import pytest
from quart import Quart

from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from tests.integration.routes.conftest import ORIGIN, Visitor, Visitors, contents
from tests.integration.routes.permission_matrix import POSTS
from tests.integration.routes.requests import author_with_content, form, path
from tests.integration.routes.test_rate_limits import handshake

SAME_ORIGIN = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}


async def test_no_post_takes_effect_without_a_token_of_its_session(visitors: Visitors) -> None:
    author, parts = await author_with_content(visitors)
    foreign = await (await visitors.with_permissions("boss", *Permission)).csrf_token()
    # The author can do what only authors may.
    early = await author.csrf_token()
    await author.post("/logout")
    anonymous = await author.csrf_token()
    assert (await author.sign_in()).status == 303
    visitor = await visitors.with_permissions("visitor", *Permission)
    tokens = {
        "none": {},
        "empty": {"csrf_token": ""},
        "garbage": {"csrf_token": "ü" * 128},
        "of another session": {"csrf_token": foreign},
        "of the session before": {"csrf_token": early},
        "from before the sign-in": {"csrf_token": anonymous},
    }
    before = await contents()
    wrong = {}
    for row in POSTS:
        if row.needs == "anyone":
            sender = visitors.anonymous()
        else:
            sender = author if row.needs in ("signed in", "author") else visitor
        for kind, token in tokens.items():
            answer = await sender.send(path(row, parts), {**form(row, "eve"), **token})
            if answer.status not in (403, 422):
                wrong[f"{row}, token {kind}"] = answer.status
    assert wrong == {}
    assert await contents() == before


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN},
    {"Sec-Fetch-Site": "made up"},
    {"Origin": "null"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://evil.example/http://localhost"},
    {"Origin": "http://localhost:81"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "https://localhost"},
    {"Origin": "http://xlocalhost"},
    {"Origin": "localhost"},
    {"Origin": "http://[broken"},
]


async def test_a_cross_site_post_is_refused_even_with_the_right_token(visitors: Visitors) -> None:
    author, parts = await author_with_content(visitors)
    anonymous = visitors.anonymous()
    token, visit = await author.csrf_token(), await anonymous.csrf_token()
    before = await contents()
    wrong = {}
    for headers in FOREIGN:
        for row in POSTS:
            sender, fits = (anonymous, visit) if row.needs == "anyone" else (author, token)
            fields = {**form(row, "eve"), "csrf_token": fits}
            answer = await sender.send(path(row, parts), fields, headers)
            if answer.status != 403 or "Another site" not in answer.text:
                wrong[f"{row} {headers}"] = answer.status
    assert wrong == {}
    assert await contents() == before


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": ORIGIN}, {"Sec-Fetch-Site": "same-origin"}, SAME_ORIGIN], ids=str
)
async def test_a_same_origin_post_is_accepted_with_or_without_fetch_headers(
    ada: Visitor, headers: dict[str, str]
) -> None:
    fields = {"csrf_token": await ada.csrf_token(), "title": "A", "body": "B"}
    assert (await ada.send("/posts/new", fields, headers)).status == 303


async def test_only_own_and_listed_origins_may_post(app: Quart, ada: Visitor) -> None:
    listed = "https://people.example.org"
    running = runtime_of(app)
    running.settings = running.settings.model_copy(update={"allowed_origins": [listed]})
    fields = {"csrf_token": await ada.csrf_token(), "title": "A", "body": "B"}
    for origin in (ORIGIN, listed):
        assert (await ada.send("/posts/new", fields, {"Origin": origin})).status == 303
        assert await handshake(ada, origin) == 101
    foreign = [sent["Origin"] for sent in FOREIGN if sent.get("Origin", ORIGIN) != ORIGIN]
    for origin in (*foreign, f"{listed}.evil.example", f"{listed}/", "http://people.example.org"):
        assert (await ada.send("/posts/new", fields, {"Origin": origin})).status == 403, origin
        assert await handshake(ada, origin) == 403, origin


async def test_the_token_is_accepted_in_a_header(ada: Visitor) -> None:
    headers = {"Origin": ORIGIN, "X-CSRF-Token": await ada.csrf_token()}
    answer = await ada.send("/posts/new", {"title": "A", "body": "B"}, headers)
    assert answer.status == 303


@pytest.mark.parametrize("headers", [{"Origin": ORIGIN}, {"Sec-Fetch-Site": "same-origin"}])
async def test_an_expired_form_is_shown_again_as_it_was_filled(
    ada: Visitor, headers: dict[str, str]
) -> None:
    old = await ada.csrf_token()
    await ada.post("/logout")
    await ada.sign_in()
    typed = {"title": "Ünïcode & <b>", "body": 'Line one\nline two "quoted"'}
    answer = await ada.send("/posts/new", {**typed, "csrf_token": old}, headers)
    assert answer.status == 422
    shown = answer.fields
    assert {name: shown[name] for name in typed} == typed
    assert 'action="/posts/new"' in answer.text
    again = await ada.send("/posts/new", shown, headers)
    assert again.status == 303
    assert "Ünïcode &amp; &lt;b&gt;" in (await ada.get(again.location)).text


async def test_a_browser_without_cookies_is_told_that_they_are_needed(anonymous: Visitor) -> None:
    sent = {"csrf_token": await anonymous.csrf_token(), "login": "ada", "password": "x"}
    told = "does not send cookies to this site"
    assert told not in (await anonymous.send("/login", {**sent, "csrf_token": "old"})).text
    forgetful = Visitor(anonymous.app)
    answer = await forgetful.send("/login", sent)
    assert answer.status == 422
    assert told in answer.text


async def test_an_expired_form_is_shown_again_without_passwords(visitors: Visitors) -> None:
    secret = "a secret that is long enough"
    typed = {
        "username": "valentina",
        "password": secret,
        "confirm": secret,
        "current_password": secret,
    }
    answer = await visitors.anonymous().send("/register", typed)
    assert answer.status == 422
    assert answer.fields["username"] == "valentina"
    assert secret not in answer.text


async def test_a_form_of_unknown_origin_is_not_shown_again(
    ada: Visitor,
) -> None:
    answer = await ada.send("/posts/new", {"title": "planted", "body": "planted"}, {})
    assert answer.status == 403
    assert "planted" not in answer.text


async def test_a_form_is_accepted_after_a_password_change_in_another_tab(ada: Visitor) -> None:
    token = await ada.csrf_token()
    new = "an entirely different phrase"
    sent = {"current_password": ada.password, "password": new, "confirm": new}
    assert (await ada.post("/account/password", **sent)).status == 303
    fields = {"csrf_token": token, "title": "A", "body": "B"}
    assert (await ada.send("/posts/new", fields)).status == 303


async def test_tokens_are_masked_differently_on_every_page(ada: Visitor) -> None:
    assert await ada.csrf_token() != await ada.csrf_token()
