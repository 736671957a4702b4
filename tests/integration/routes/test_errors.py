"""Error answers reveal no internals (ASVS 16.5)."""

import asyncio
from typing import Any

import pytest
from quart import Quart
from quart.testing.connections import WebsocketDisconnectError

from quartapp import clock
from quartapp.authority import session_states
from quartapp.authority.session_rule import PrincipalOrEnded
from quartapp.models import User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.sessions.reason import Reason
from quartapp.routes import errors
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.integration.routes.conftest import ORIGIN, Visitor, Visitors, user_named

SECRET = "the cause, with a password in it"


@pytest.fixture
async def settings(settings: Settings) -> Settings:
    """No sweep repeats a failed check during a test."""
    return settings.model_copy(update={"live_sweep_seconds": 3600})


async def fail(*_: object, **__: object) -> None:
    raise RuntimeError(SECRET)


@pytest.mark.parametrize(
    "path",
    [
        *("/nowhere", "/posts/x", "/account/x.css", "/.git/config", "/.env"),
        # These files exist outside of the static folder.
        *("/settings.py", "/quartapp/settings.py", "/static/..%2fsettings.py"),
    ],
)
async def test_an_unknown_path_is_404_with_the_layout_of_the_site(
    anonymous: Visitor, path: str
) -> None:
    answer = await anonymous.get(path)
    assert answer.status == 404
    assert "Page not found" in answer.text
    assert '<a href="/login"' in answer.text


async def test_private_pages_are_not_served_under_file_names(ada: Visitor) -> None:
    """A cache may store answers whose path looks like a file (ASVS 14.2.5)."""
    for path in ("/account", "/account/sessions", "/account/notices", "/api/me", "/users/ada"):
        for ending in ("/x.css", "/live.js", ".css", "%2fx.css", "%0ax.css", ";x.css"):
            assert (await ada.get(path + ending)).status == 404, path + ending


async def test_an_unsupported_method_is_405(ada: Visitor) -> None:
    answer = await ada.get("/logout")
    assert answer.status == 405
    assert "Method not allowed" in answer.text
    assert "POST" in answer.headers["Allow"]


async def test_a_body_past_the_limit_is_413(ada: Visitor) -> None:
    answer = await ada.post("/posts/new", title="A", body="x" * 70_000)
    assert answer.status == 413
    assert "Request too large" in answer.text
    assert await ada.me() is not None


async def test_an_incomplete_body_times_out_with_408(
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


async def test_api_errors_are_json(ada: Visitor) -> None:
    assert (await ada.another_device().get("/api/me")).text.startswith("{")
    answer = await ada.get("/api/nowhere")
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/", "/api/me"])
async def test_an_error_page_does_not_reveal_the_cause(
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


async def test_a_failing_socket_handler_leaves_other_sockets_open(
    app: Quart, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = runtime_of(app).hub
    async with live(ada) as tab:
        assert (await tab.receive_json())["type"] == "hello"
        with monkeypatch.context() as patched:
            patched.setattr(session_states, "state_by_id", fail)
            with pytest.raises((RuntimeError, WebsocketDisconnectError)) as failed:
                async with live(ada) as other:
                    await other.receive()
        assert len(hub) == 1, failed
        await (await user_named("ada")).end_sessions(Reason.ENDED_BY_ADMIN, by=SYSTEM)
        assert await ended(tab) == "ended_by_admin"


async def test_a_failed_check_of_sessions_is_repeated(
    ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = session_states.states_matching, asyncio.Event()

    async def once(match: Any) -> list[PrincipalOrEnded]:
        if not failed.is_set():
            failed.set()
            raise RuntimeError(SECRET)
        return await real(match)

    async with live(ada) as tab:
        assert (await tab.receive_json())["type"] == "hello"
        monkeypatch.setattr(session_states, "states_matching", once)
        await User.change({"username": "ada"}, {"$set": {"disabled_at": clock.now()}})
        assert await ended(tab) == "account_disabled"
    assert failed.is_set()


def live(visitor: Visitor) -> Any:
    return visitor.client.websocket("/ws", headers={"Origin": ORIGIN}, scope_base=visitor.scope)


async def ended(tab: Any) -> str:
    """Wait for `session.ended` and return its reason."""
    async with asyncio.timeout(10):
        while (message := await tab.receive_json())["type"] != "session.ended":
            pass
    return message["reason"]


async def test_a_failing_error_page_is_answered_with_plain_text(
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


async def test_a_failure_to_load_the_user_is_500_without_user_data(
    app: Quart, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quartapp.authority import session_states

    runtime_of(app).principal_cache.on_missed_changes()
    monkeypatch.setattr(session_states, "state_by_digest", fail)
    for path in ("/account", "/", "/posts"):
        answer = await ada.get(path)
        assert answer.status == 500
        assert "data-username" not in answer.text
        assert SECRET not in answer.text


async def test_a_failing_post_does_not_sign_the_user_out(
    app: Quart, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.view_functions, "posts.new", fail)
    assert (await ada.post("/posts/new", title="A", body="B")).status == 500
    assert await ada.me() is not None


async def test_the_back_link_of_an_error_page_stays_on_the_site(
    visitors: Visitors, ada: Visitor
) -> None:
    ours = await ada.get("/nowhere", headers={"Referer": f"{ORIGIN}/posts?after=x"})
    assert "/posts?after=x" in ours.links
    for referer in ("http://evil.example/x", f"{ORIGIN}//evil.example", f"{ORIGIN}.evil.example/"):
        theirs = await ada.get("/nowhere", headers={"Referer": referer})
        assert "evil" not in theirs.text
