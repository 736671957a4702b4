"""What goes wrong is answered with what one may know of it, and with nothing else (ASVS 16.5)."""

import asyncio
from typing import Any

import pytest
from quart import Quart
from quart.testing.connections import WebsocketDisconnectError

from quartapp import clock
from quartapp.authority import session_rule
from quartapp.authority.session_rule import Standing
from quartapp.models import User
from quartapp.models.base.actor import NOBODY
from quartapp.models.sessions.reason import Reason
from quartapp.routes import errors
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.routes.conftest import ORIGIN, Town, Visitor, the_user

SECRET = "the cause, with a password in it"


@pytest.fixture
async def settings(settings: Settings) -> Settings:
    """Nothing is made good by a sweep."""
    return settings.model_copy(update={"live_sweep_seconds": 3600})


async def fail(*_: object, **__: object) -> None:
    raise RuntimeError(SECRET)


@pytest.mark.parametrize(
    "path",
    [
        *("/nowhere", "/posts/x", "/account/x.css", "/.git/config", "/.env"),
        # Files that are there, beside and above those that are served.
        *("/settings.py", "/quartapp/settings.py", "/static/..%2fsettings.py"),
    ],
)
async def test_what_is_not_there_is_404_in_the_clothes_of_the_site(
    nobody: Visitor, path: str
) -> None:
    answer = await nobody.get(path)
    assert answer.status == 404
    assert "Page not found" in answer.text
    assert '<a href="/login"' in answer.text


async def test_no_page_of_somebodys_answers_to_the_name_of_a_file(ada: Visitor) -> None:
    """A cache between here and there may keep what looks like a file (ASVS 14.2.5)."""
    for path in ("/account", "/account/sessions", "/account/notices", "/api/me", "/users/ada"):
        for ending in ("/x.css", "/live.js", ".css", "%2fx.css", "%0ax.css", ";x.css"):
            assert (await ada.get(path + ending)).status == 404, path + ending


async def test_a_page_that_was_used_in_another_way_is_405(ada: Visitor) -> None:
    answer = await ada.get("/logout")
    assert answer.status == 405
    assert "Method not allowed" in answer.text
    assert "POST" in answer.headers["Allow"]


async def test_more_than_a_form_may_hold_is_413(ada: Visitor) -> None:
    answer = await ada.post("/posts/new", title="A", body="x" * 70_000)
    assert answer.status == 413
    assert "Request too large" in answer.text
    assert await ada.me() is not None


async def test_a_body_that_does_not_come_to_its_end_is_waited_for_no_longer_than_it_may_take(
    app: Quart, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.config["BODY_TIMEOUT"] == 15
    monkeypatch.setitem(app.config, "BODY_TIMEOUT", 0.2)
    form = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}
    for headers in (form, {**form, "Content-Length": "60000"}):
        request = ada.client.request("/login", method="POST", headers=headers)
        async with asyncio.timeout(10), request as connection:
            await connection.send(b"login=ada&password=")
        answer = await connection.as_response()
        assert answer.status_code == 408
        assert "Request timed out" in await answer.get_data(as_text=True)
    assert await ada.me() is not None


async def test_a_program_gets_its_errors_as_json(ada: Visitor) -> None:
    assert (await ada.another_device().get("/api/me")).text.startswith("{")
    answer = await ada.get("/api/nowhere")
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/", "/api/me"])
async def test_a_failure_says_nothing_of_its_cause(
    app: Quart, ada: Visitor, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for endpoint in ("front.home", "front.me"):
        monkeypatch.setitem(app.view_functions, endpoint, fail)
    answer = await ada.get(path)
    assert answer.status == 500
    assert answer.text
    for word in (SECRET, "Traceback", "RuntimeError", ".py"):
        assert word not in answer.text
    assert (await ada.get("/account")).status == 200


async def test_a_failure_in_one_sockets_handler_leaves_no_trace_of_it_and_the_others_open(
    app: Quart, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = runtime_of(app).hub
    async with live(ada) as tab:
        assert (await tab.receive_json())["type"] == "hello"
        with monkeypatch.context() as patched:
            patched.setattr(session_rule, "by_id", fail)
            with pytest.raises((RuntimeError, WebsocketDisconnectError)) as failed:
                async with live(ada) as other:
                    await other.receive()
        assert len(hub) == 1, failed
        await (await the_user("ada")).end_sessions(Reason.ENDED_BY_ADMIN, by=NOBODY)
        assert await ended(tab) == "ended_by_admin"


async def test_a_failure_in_what_tells_the_sockets_is_made_good(
    ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = session_rule.standings, asyncio.Event()

    async def once(match: Any) -> list[Standing]:
        if not failed.is_set():
            failed.set()
            raise RuntimeError(SECRET)
        return await real(match)

    async with live(ada) as tab:
        assert (await tab.receive_json())["type"] == "hello"
        monkeypatch.setattr(session_rule, "standings", once)
        await User.change({"username": "ada"}, {"$set": {"disabled_at": clock.now()}})
        assert await ended(tab) == "account_disabled"
    assert failed.is_set()


def live(visitor: Visitor) -> Any:
    return visitor.client.websocket("/ws", headers={"Origin": ORIGIN}, scope_base=visitor.scope)


async def ended(tab: Any) -> str:
    """Why, once its page was told."""
    async with asyncio.timeout(10):
        while (message := await tab.receive_json())["type"] != "session.ended":
            pass
    return message["reason"]


async def test_when_the_page_for_failures_fails_too_there_is_still_an_answer(
    app: Quart, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "render_template", fail)
    monkeypatch.setitem(app.view_functions, "front.home", fail)
    for path in ("/", "/nowhere", "/admin/users"):
        answer = await ada.get(path)
        assert (answer.status, answer.text) == (500, "Something went wrong.\n")
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_when_asking_who_it_is_fails_the_answer_is_500_and_not_somebodys_page(
    app: Quart, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quartapp.authority import session_rule

    runtime_of(app).principals.interrupted()
    monkeypatch.setattr(session_rule, "by_digest", fail)
    for path in ("/account", "/", "/posts"):
        answer = await ada.get(path)
        assert answer.status == 500
        assert "data-username" not in answer.text
        assert SECRET not in answer.text


async def test_a_failure_in_a_post_is_no_reason_to_sign_out(
    app: Quart, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.view_functions, "posts.new", fail)
    assert (await ada.post("/posts/new", title="A", body="B")).status == 500
    assert await ada.me() is not None


async def test_a_back_link_leads_to_the_page_before_and_never_off_the_site(
    town: Town, ada: Visitor
) -> None:
    ours = await ada.get("/nowhere", headers={"Referer": f"{ORIGIN}/posts?after=x"})
    assert "/posts?after=x" in ours.links
    for referer in ("http://evil.example/x", f"{ORIGIN}//evil.example", f"{ORIGIN}.evil.example/"):
        theirs = await ada.get("/nowhere", headers={"Referer": referer})
        assert "evil" not in theirs.text
