"""Race-free admission: changes between the check of the session and its hello."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from pymongo.errors import AutoReconnect
from quart import Quart
from quart.testing.connections import WebsocketDisconnectError
from quart_auth import authenticated_client

from quartapp import clock, create_app
from quartapp.authority import session_states
from quartapp.authority.session_rule import PrincipalOrEnded
from quartapp.models import Role, Session, User
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.models.sessions.opening import open_session
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from quartapp.ws import dispatcher
from tests.integration.models.helpers import sign_in
from tests.people import SECONDS, until


async def test_the_page_of_a_socket_is_stored_after_an_error_of_the_database(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, session, token = await somebody()
    write, failures = Session.mark_opened, count()

    async def fail_once(*args: Any, **options: Any) -> None:
        if next(failures) == 0:
            raise AutoReconnect("the primary has stepped down")
        await write(*args, **options)

    async def page_of_session() -> bool:
        stored = await Session.get(session.id)
        return stored is not None and stored.page == "/posts"

    monkeypatch.setattr(Session, "mark_opened", fail_once)
    client, headers = app.test_client(), {"Origin": "http://localhost"}
    async with (
        authenticated_client(client, token),
        client.websocket("/ws?page=/posts", headers=headers) as socket,
    ):
        await socket.receive()
        await until(page_of_session)


@dataclass
class Pause:
    """Delays the result of the next check of a session until `go`."""

    looked: asyncio.Event
    go: asyncio.Event


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Pause:
    pause = Pause(asyncio.Event(), asyncio.Event())
    real = session_states.state_by_id

    async def by_id(session_id: Any) -> Any:
        answer = await real(session_id)
        pause.looked.set()
        await pause.go.wait()
        return answer

    monkeypatch.setattr(session_states, "state_by_id", by_id)
    return pause


async def somebody() -> tuple[User, Session, str]:
    member = await Role.named("member")
    assert member
    ada = await register_account("ada", "ada@example.org", "no hash", roles=[member], by=SYSTEM)
    session, token, _ = await open_session(
        ada,
        device="a test",
        by=SYSTEM,
        idle=timedelta(minutes=30),
        lifetime=timedelta(hours=1),
    )
    return ada, session, token


async def heard(app: Quart, token: str, said: list[dict[str, Any]]) -> int:
    """Read from a socket until it is closed and return the code."""
    client = app.test_client()
    async with authenticated_client(client, token):
        try:
            async with client.websocket("/ws", headers={"Origin": "http://localhost"}) as socket:
                while True:
                    said.append(json.loads(await socket.receive()))
        except WebsocketDisconnectError as closed:
            return closed.args[0]


async def test_an_end_between_the_check_and_hello_is_not_lost(app: Quart, pause: Pause) -> None:
    _, session, token = await somebody()
    said: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        listening = asyncio.create_task(heard(app, token, said))
        await pause.looked.wait()
        # The look is done and its answer held; the session ends, and the feed judges it.
        judged = judgement(app)
        await Session.change({"_id": session.id}, {"$set": {"ended_at": clock.now()}})
        await judged
        pause.go.set()
        assert await listening == 4401
    assert [message["type"] for message in said] == ["session.ended"]


async def test_permissions_changed_between_check_and_hello_are_in_hello(
    app: Quart, pause: Pause
) -> None:
    ada, session, token = await somebody()
    moderator = await Role.named("moderator")
    assert moderator
    said: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        listening = asyncio.create_task(heard(app, token, said))
        await pause.looked.wait()
        judged = judgement(app)
        await ada.grant(moderator, by=SYSTEM)
        await judged
        pause.go.set()
        await until(lambda: is_greeted(said))
        await Session.change({"_id": session.id}, {"$set": {"ended_at": clock.now()}})
        assert await listening == 4401
    assert said[0]["type"] == "hello"
    assert said[0]["roles"] == ["member", "moderator"]
    assert said[0]["version"] == 2


async def is_greeted(said: list[dict[str, Any]]) -> bool:
    return bool(said)


def judgement(app: Quart) -> asyncio.Future[None]:
    """Done when the hub has been told of the next judgement, by the feed itself."""
    hub = runtime_of(app).hub
    told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    settle = hub.apply_states

    def watched(states: Any) -> Any:
        unnumbered = settle(states)
        if states and not told.done():
            told.set_result(None)
        return unnumbered

    hub.apply_states = watched
    return told


async def test_every_socket_is_closed_after_a_long_database_outage(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tolerance is half a minute in production and zero here."""
    _, _, token = await somebody()
    said: list[dict[str, Any]] = []

    async def away(*_: object) -> Any:
        raise TimeoutError

    async with asyncio.timeout(10):
        listening = asyncio.create_task(heard(app, token, said))
        await until(lambda: is_greeted(said))
        monkeypatch.setattr(dispatcher, "DATABASE_AWAY_SECONDS", 0.5)
        monkeypatch.setattr(session_states, "states_matching", away)
        runtime_of(app).change_stream.live = False
        assert await listening == 1013


async def test_partial_database_failures_close_no_socket(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing sockets would make a slow database slower, because they reconnect."""
    ask, asked, failed = session_states.states_matching, count(), count()

    async def every_other(match: Mapping[str, Any]) -> list[PrincipalOrEnded]:
        if next(asked) % 2:
            next(failed)
            raise TimeoutError
        return await ask(match)

    # The sockets of this test do not answer pings.
    patient = {"live_ping_seconds": 60, "live_sweep_seconds": 0.1}
    app = create_app(settings.model_copy(update=patient))
    async with app.test_app(), asyncio.timeout(SECONDS):
        ada, _, token = await somebody()
        tokens = [token, (await sign_in(ada))[1]]
        said: list[list[dict[str, Any]]] = [[], []]
        both = zip(tokens, said, strict=True)
        listening = [asyncio.create_task(heard(app, token, words)) for token, words in both]
        for words in said:
            await until(lambda words=words: is_greeted(words))
        monkeypatch.setattr(dispatcher, "DATABASE_AWAY_SECONDS", 0.5)
        monkeypatch.setattr(dispatcher, "BATCH_SIZE", 1)
        monkeypatch.setattr(session_states, "states_matching", every_other)
        runtime_of(app).change_stream.live = False
        # Ten looks in a second, none of which reads all sessions, for longer than it may last.
        until_then = clock.monotonic() + 2 * dispatcher.DATABASE_AWAY_SECONDS

        async def is_over() -> bool:
            return clock.monotonic() > until_then

        await until(is_over)
        assert next(failed) > 1
        assert not any(task.done() for task in listening)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
