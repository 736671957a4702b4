"""quartapp: user management in which authority is live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from pydantic import SecretStr
from quart import Quart, abort, request

from quartapp import auth, log, models, routes
from quartapp.authority.barrier import Barrier
from quartapp.authority.change_stream import Stream
from quartapp.authority.lease import Lease
from quartapp.authority.principal_cache import Principals
from quartapp.db import embedded, mongo
from quartapp.forms import csrf
from quartapp.jobs.account_expiry import Departures
from quartapp.jobs.erasure import Eraser
from quartapp.jobs.last_seen import Seen
from quartapp.jobs.outbox_worker import Postman
from quartapp.middleware.allowed_hosts import AllowedHosts
from quartapp.middleware.forwarded import Proxied
from quartapp.middleware.headers import Edge
from quartapp.middleware.post_serializer import Paced, Pulse
from quartapp.middleware.request_bounds import Request, RequestBounds
from quartapp.models.accounts.email_address import require_verification
from quartapp.models.accounts.one_time_token import issue_setup
from quartapp.routes import templating
from quartapp.security.encryption import Seal
from quartapp.security.password_policy import PasswordPolicy
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings
from quartapp.ws import endpoint as ws
from quartapp.ws.dispatcher import Feed
from quartapp.ws.hub import Hub, Limits
from quartapp.ws.receipts import Receipts

UNIDENTIFIED = {"static", "health.alive", "health.ready", "health.numbers"}


@dataclass
class Running:
    """What one worker has: found at `app.extensions["quartapp"]`."""

    settings: Settings
    hasher: PasswordHasher
    password_policy: PasswordPolicy
    seal: Seal
    hub: Hub
    feed: Feed
    stream: Stream
    lease: Lease
    barrier: Barrier
    receipts: Receipts
    principals: Principals
    seen: Seen
    postman: Postman
    departures: Departures
    eraser: Eraser
    pulse: Pulse
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    # Held by the request whose large form is being parsed.
    parsing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self) -> None:
        """What follows the database, the lowest first; stopped in the other order."""
        parts = (self.stream, self.lease, self.barrier, self.receipts, self.seen, self.postman)
        for part in (*parts, self.departures, self.eraser, self.pulse):
            self.stack.push_async_callback(part.stop)
            await part.start()
        self.stack.push_async_callback(self.feed.stop)
        self.feed.start(self.stream)

    async def drain(self) -> None:
        """Says goodbye to every socket. Takes about a second at most; requests go on."""
        self.hub.draining = True
        await self.hub.send_away()


@dataclass(frozen=True)
class Prepared:
    """What a start should say: the database, and where the first administrator is made."""

    database: str
    setup_path: str | None


def create_app(settings: Settings | None = None) -> Quart:
    """The application. Raises StartError for settings that cannot be used.

    Its lifespan connects to the database, or starts the embedded one where none is named, and
    opens the change stream.
    """
    unknown = [] if settings else Settings.unknown_names()
    settings = settings or Settings.load()
    log.configure(production=settings.production, worker=settings.worker)
    for sentence in unknown:
        log.log.warning("setting_unknown", detail=sentence)
    app = Quart(__name__)
    app.request_class = Request
    app.jinja_environment = templating.Environment
    _configure(app, settings)
    auth.init_app(app, settings)
    running = _assemble(settings)
    app.extensions["quartapp"] = running

    @app.before_serving
    async def start() -> None:
        await running.stack.enter_async_context(open_database(settings))
        await require_verification(settings.verification_required)
        await running.start()

    @app.after_serving
    async def stop() -> None:
        await running.drain()
        await running.stack.aclose()
        await running.password_policy.close()
        running.hasher.close()

    app.asgi_app = AllowedHosts(app.asgi_app, settings)  # type: ignore[method-assign]
    app.asgi_app = Edge(RequestBounds(app.asgi_app), settings)  # type: ignore[method-assign]
    routes.init_app(app, settings)
    app.register_blueprint(ws.blueprint)
    templating.init_app(app, settings)
    app.asgi_app = Paced(app.asgi_app)  # type: ignore[method-assign]
    if settings.trusted_proxies:
        proxied = Proxied(app.asgi_app, settings.trusted_proxies)
        app.asgi_app = proxied  # type: ignore[method-assign]

    @app.before_request
    async def identify() -> None:
        if request.endpoint not in UNIDENTIFIED:
            await auth.load_current_user()
            if request.method in csrf.UNSAFE:
                await csrf.protect()
        elif request.endpoint == "static":
            # Looked for on the disk, a name longer than a file's can be is an error there.
            values = request.view_args or {}
            if len(values["filename"].encode()) > 255:
                abort(404)

    return app


async def prepare(settings: Settings) -> Prepared:
    """Makes the database ready for workers: once at a start, before the first of them.

    Raises StartError when it cannot be reached or indexed.
    """
    async with mongo.connected(settings, models.DOCUMENTS):
        await models.prepare()
        await require_verification(settings.verification_required)
        token = await issue_setup()
        version = await mongo.server_version()
    return Prepared(f"MongoDB {version}", f"/setup/{token}" if token else None)


async def forget_worker(settings: Settings, worker_id: str) -> None:
    """Delete the heartbeat of a worker whose process has ended, so that nobody waits for it.

    Raises StartError when the database cannot be reached, and what the driver raises.
    """
    async with mongo.connected(settings, [models.Worker]):
        await models.Worker.leave(worker_id)


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[None]:
    """Binds the documents, to the embedded database where no other is named, and prepares it."""
    settings.make_data_folder()
    async with AsyncExitStack() as stack:
        if settings.mongodb_uri is None:
            mongod = await stack.enter_async_context(embedded.running(settings.data))
            # Whoever allows the embedded database in production allows the version that it has.
            update = {"mongodb_uri": SecretStr(mongod.uri), "allow_old_mongodb": True}
            settings = settings.model_copy(update=update)
        await stack.enter_async_context(mongo.connected(settings, models.DOCUMENTS))
        await models.prepare()
        yield


def _configure(app: Quart, settings: Settings) -> None:
    app.secret_key = settings.secret_key.get_secret_value()
    secure = settings.production
    app.config.update(
        SECRET_KEY_FALLBACKS=[key.get_secret_value() for key in settings.secret_key_fallbacks],
        SESSION_COOKIE_NAME="__Host-visit" if secure else "quartapp_visit",
        SESSION_COOKIE_SECURE=secure,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_CONTENT_LENGTH=64 * 1024,
        MAX_FORM_MEMORY_SIZE=64 * 1024,
        MAX_FORM_PARTS=50,
        BODY_TIMEOUT=15,
        RESPONSE_TIMEOUT=60,
        SEND_FILE_MAX_AGE_DEFAULT=None,
    )


def _assemble(settings: Settings) -> Running:
    hub = _hub(settings)
    lease = Lease(settings.worker, settings.worker_id)
    receipts = Receipts(hub, lease.worker_id)
    feed = Feed(hub, receipts, sweep_seconds=settings.live_sweep_seconds)
    barrier = Barrier(lease, tabs=receipts.tabs, folder=settings.neighbours)
    postman = Postman(settings)
    departures = Departures()
    principals = Principals(lease, at_most=settings.principals_per_worker)
    return Running(
        settings=settings,
        hasher=PasswordHasher.of(settings),
        password_policy=PasswordPolicy.of(settings),
        seal=Seal.of(settings),
        hub=hub,
        feed=feed,
        # The order counts: what is remembered is forgotten, and the tabs concerned are counted,
        # before a mark is acknowledged.
        stream=Stream([principals, lease, feed, receipts, barrier, postman, departures]),
        lease=lease,
        barrier=barrier,
        receipts=receipts,
        principals=principals,
        seen=Seen(),
        postman=postman,
        departures=departures,
        eraser=Eraser(),
        pulse=Pulse(),
    )


def _hub(settings: Settings) -> Hub:
    limits = Limits(
        sockets=settings.sockets_per_worker,
        per_session=settings.sockets_per_session,
        per_user=settings.sockets_per_user,
        per_address=settings.sockets_per_address,
        handshakes=settings.handshakes_at_once,
    )
    return Hub(limits)
