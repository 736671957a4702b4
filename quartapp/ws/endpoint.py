"""The socket at /ws."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps

from quart import Blueprint, abort, g, websocket
from quart_auth import login_required

from quartapp.auth import current_user, rate_limits, remote_address
from quartapp.authority import session_rule
from quartapp.authority.session_rule import Ended, Principal
from quartapp.db.mongo import Unavailable
from quartapp.forms.csrf import same_origin
from quartapp.log import log
from quartapp.runtime import runtime, settings
from quartapp.ws.connection import Connection
from quartapp.ws.fast_path import DIRECT_CHANNEL, QueuedChannel
from quartapp.ws.hub import Full, Hub
from quartapp.ws.protocol import Close

blueprint = Blueprint("ws", __name__)


def in_turn(view: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """When a worker is renewed all of its pages come back: each costs a few questions to the
    database, and those past so many at a time are sent away to come again."""

    @wraps(view)
    async def wrapper() -> None:
        try:
            g.turn = turn = _hub().begin_handshake()
        except Full:
            abort(503)
        try:
            await view()
        finally:
            _hub().end_handshake(turn)

    return wrapper


@blueprint.websocket("/ws")
@in_turn
@login_required
async def live() -> None:
    """The live layer of one page. `?cursor=` resumes behind the notice of that number."""
    hub = _hub()
    session_id, user_id = current_user.session_id, current_user.user_id
    await rate_limits.count(
        "handshake",
        (f"user {user_id}", settings().limit_handshake_user),
        (rate_limits.network_of(remote_address()), settings().limit_handshake_address),
    )
    # Nothing that waits between this and the joining: what others take meanwhile is not seen.
    try:
        hub.check_room(session_id, user_id, remote_address())
    except Full:
        abort(503)
    cursor = _cursor()
    await websocket.accept()
    socket = websocket._get_current_object()  # type: ignore[attr-defined]
    connection = Connection(
        socket,
        (socket.scope.get("extensions") or {}).get(DIRECT_CHANNEL) or QueuedChannel(socket),
        session_id=session_id,
        user_id=user_id,
        address=remote_address(),
        mailbox=settings().live_mailbox,
        ping_seconds=settings().live_ping_seconds,
    )
    # Join first, ask after: whatever is taken away from here on is heard, and what was taken
    # away before is in the answer.
    hub.join(connection)
    try:
        try:
            await _welcome(connection, cursor)
        except Unavailable:
            connection.close(Close.OVERLOADED, "database away")
        except Exception as error:
            connection.fail(error)
        hub.end_handshake(g.turn)
        await connection.run()
    finally:
        hub.leave(connection)


@blueprint.before_websocket
async def refuse_other_origins() -> None:
    """Any page's socket carries the cookie, so the page must be ours (ASVS 4.4.2)."""
    origins = websocket.headers.getlist("Origin")
    scheme = {"ws": "http", "wss": "https"}[websocket.scheme]
    if len(origins) != 1 or not same_origin(origins[0], scheme, websocket.host):
        log.warning("malicious_cors", path=websocket.path, origin=", ".join(origins))
        abort(403)


def _hub() -> Hub:
    return runtime().hub


async def _welcome(connection: Connection, cursor: int | None) -> None:
    """The first words, which are the last ones when the session is over."""
    standing = await _standing(connection)
    if isinstance(standing, Principal):
        connection.greet(standing, cursor=cursor, worker=settings().worker)
    else:
        _hub().end(connection, standing)


async def _standing(connection: Connection) -> Principal | Ended:
    """How the session stands, asked again for as long as the answer was overtaken."""
    while True:
        connection.changed.clear()
        standing = await session_rule.by_id(connection.session_id)
        if standing is None:
            return session_rule.deleted(connection.session_id, connection.user_id)
        if not connection.changed.is_set():
            return standing
        await asyncio.sleep(0)


def _cursor() -> int | None:
    text = websocket.args.get("cursor", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
