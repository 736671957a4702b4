"""The WebSocket at /ws: handshake, first message, and the end of the connection."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps

from quart import Blueprint, abort, current_app, g, websocket
from quart_auth import login_required
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RoutingException

from quartapp import validation
from quartapp.auth import current_user, rate_limits, remote_address
from quartapp.authority import session_rule, session_states
from quartapp.authority.session_rule import EndedSession, Principal
from quartapp.db.mongo import Unavailable
from quartapp.forms.csrf import same_origin
from quartapp.i18n import LOCALES, set_locale
from quartapp.log import log
from quartapp.runtime import runtime, settings
from quartapp.ws import topics
from quartapp.ws.connection import Connection
from quartapp.ws.fast_path import DIRECT_CHANNEL, QueuedChannel
from quartapp.ws.hub import Hub, NoCapacity
from quartapp.ws.protocol import CloseCode

blueprint = Blueprint("ws", __name__)

PAGE_LENGTH = 200


def limit_handshakes(view: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Decorate a WebSocket view so that it answers 503 while too many handshakes are under way, or
    the worker is stopping.

    When a worker restarts, all its pages reconnect, and each handshake makes some queries. The view
    ends its handshake itself with `g.turn`; if it does not, this does when the view returns.
    """

    @wraps(view)
    async def wrapper() -> None:
        try:
            g.turn = turn = _hub().begin_handshake()
        except NoCapacity:
            abort(503)
        try:
            await view()
        finally:
            _hub().end_handshake(turn)

    return wrapper


@blueprint.websocket("/ws")
@limit_handshakes
@login_required
async def live() -> None:
    """Serve one page's socket until it is closed. `?cursor=` resumes behind that notification,
    `?unread=` is the number of unread notifications that the page shows, `?topics=` names the
    topics that it follows (see `ws.topics`), and `?page=` is its path.

    Answers 403 to an Origin that is not allowed, 401 without a valid session, 429 past the
    handshake limits of the user and the network, and 503 past the limits for sockets and for
    handshakes at once. After accepting, adds the socket to the hub, sends the first message
    (`hello`, or `session.ended` before it closes), and reads and writes until the end, when the
    socket leaves the hub. If the database is unavailable for the first message, closes with 1013;
    after another error, logs it and closes with 1011.
    """
    hub = _hub()
    session_id, user_id = current_user.session_id, current_user.user_id
    await rate_limits.count(
        "handshake",
        (f"user {user_id}", settings().limit_handshake_user),
        (rate_limits.network_of(remote_address()), settings().limit_handshake_address),
    )
    # Nothing may wait between this check and `join`, or simultaneous handshakes exceed a limit.
    try:
        hub.check_capacity(session_id, user_id, remote_address())
    except NoCapacity:
        abort(503)
    cursor, unread = _number("cursor"), _number("unread")
    keys = topics.parse(websocket.args.get("topics", ""), user_id)
    if current_user.language in LOCALES:
        set_locale(current_user.language)
    await websocket.accept()
    socket = websocket._get_current_object()  # type: ignore[attr-defined]
    connection = Connection(
        socket,
        (socket.scope.get("extensions") or {}).get(DIRECT_CHANNEL) or QueuedChannel(socket),
        session_id=session_id,
        user_id=user_id,
        roles=(role.id for role in current_user.principal.held),
        address=remote_address(),
        page=_page_argument(),
        mailbox=settings().live_mailbox,
        ping_seconds=settings().live_ping_seconds,
    )
    follower = None
    # Join the hub first and read the session's state after: a revocation before the query is in its
    # result, and a later one arrives through the hub.
    hub.join(connection)
    try:
        try:
            await _send_first_message(connection, cursor, unread)
            if keys and connection.sent_principal is not None:
                follower = runtime().announcer.subscribe(connection, keys)
        except Unavailable:
            connection.close(CloseCode.OVERLOADED, "database away")
        except Exception as error:
            connection.close_after_error(error)
        hub.end_handshake(g.turn)
        await connection.run()
    finally:
        hub.leave(connection)
        if follower is not None:
            runtime().announcer.unsubscribe(follower)


@blueprint.before_websocket
async def refuse_other_origins() -> None:
    """Refuse the handshake with 403, and log `malicious_cors`, unless it has exactly one Origin
    header, with an origin that `same_origin` allows for the scheme and host of the handshake.

    A browser sends the cookie with a socket that any site opens (ASVS 4.4.2), and always an Origin
    header, so a client without one is refused.
    """
    origins = websocket.headers.getlist("Origin")
    scheme = {"ws": "http", "wss": "https"}[websocket.scheme]
    if len(origins) != 1 or not same_origin(origins[0], scheme, websocket.host):
        log.warning("malicious_cors", path=websocket.path, origin=", ".join(origins))
        abort(403)


def _hub() -> Hub:
    return runtime().hub


async def _send_first_message(
    connection: Connection, cursor: int | None, unread: int | None
) -> None:
    """Send `hello` if the session is valid, or else `session.ended` and close.

    Raises the driver's errors.
    """
    state = await _current_state(connection)
    if isinstance(state, Principal):
        connection.send_hello(state, cursor=cursor, unread=unread, worker=settings().worker)
    else:
        _hub().end_connection(connection, state)


async def _current_state(connection: Connection) -> Principal | EndedSession:
    """Return the session's state; read it again if a change arrives during the query. A session
    whose document is gone counts as ended by an administrator.

    The query also stores that a session is over, and roles that the session did not list yet
    (`session_states.states_matching`). Raises the driver's errors.
    """
    while True:
        connection.state_changed.clear()
        state = await session_states.state_by_id(connection.session_id)
        if state is None:
            return session_rule.state_of_deleted(connection.session_id, connection.user_id)
        if not connection.state_changed.is_set():
            return state
        await asyncio.sleep(0)


def _page_argument() -> str | None:
    """Return the path in `?page=`, at most PAGE_LENGTH characters, for administrators to see; None
    if this site has no such page.

    For a path that contains a token, returns the rule of its route.
    """
    try:
        adapter = current_app.url_map.bind("")
        rule, arguments = adapter.match(websocket.args.get("page", ""), "GET", return_rule=True)
    except (HTTPException, RoutingException):
        return None
    return rule.rule if "token" in arguments else websocket.args["page"][:PAGE_LENGTH]


def _number(name: str) -> int | None:
    """Return the number in this argument of the query, or None if it is missing or not a number."""
    return validation.parse_number(websocket.args.get(name, ""))
