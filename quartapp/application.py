"""Assembles the application: its parts, its middleware and its pages."""

from __future__ import annotations

from quart import Quart, abort, request

from quartapp import auth, log, routes
from quartapp.authority.barrier import Barrier
from quartapp.authority.change_stream import ChangeStream
from quartapp.authority.lease import Lease
from quartapp.authority.membership import Membership
from quartapp.authority.principal_cache import PrincipalCache
from quartapp.forms import csrf
from quartapp.jobs.account_expiry import AccountExpiry
from quartapp.jobs.audit_sealer import AuditSealer
from quartapp.jobs.erasure import Erasure
from quartapp.jobs.hourly_counts import HourlyCountWriter
from quartapp.jobs.last_seen import LastSeenWriter
from quartapp.jobs.loop_lag import LoopLagMonitor
from quartapp.jobs.open_requests import OpenRequests
from quartapp.jobs.outbox_worker import OutboxWorker
from quartapp.jobs.role_deletions import RoleDeletions
from quartapp.jobs.role_expiry import RoleExpiry
from quartapp.middleware.allowed_hosts import AllowedHosts
from quartapp.middleware.forwarded import ForwardedHeaders
from quartapp.middleware.headers import ResponseHeaders
from quartapp.middleware.languages import Languages
from quartapp.middleware.post_serializer import PostSerializer
from quartapp.middleware.request_bounds import Request, RequestBounds
from quartapp.models.accounts.email_address import require_verification
from quartapp.routes import templating
from quartapp.runtime import Runtime, change_listeners, install
from quartapp.security.encryption import Encryption
from quartapp.security.markdown import MarkdownRenderer
from quartapp.security.password_policy import PasswordPolicy
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings
from quartapp.startup import open_database
from quartapp.ws import endpoint
from quartapp.ws.announcer import Announcer
from quartapp.ws.dispatcher import Dispatcher
from quartapp.ws.hub import Hub, Limits
from quartapp.ws.receipts import Receipts

# Endpoints that are the same for everybody, so that no session is looked up.
UNIDENTIFIED = {"static", "health.alive", "health.ready", "health.numbers"}


def create_app(settings: Settings | None = None) -> Quart:
    """Assemble the application and return it. `quartapp.create_app` calls this.

    Without settings, reads them from the environment, and logs the warning `setting_unknown` for
    each name there that looks misspelt. Configures the log, installs Quart-Auth, the runtime, the
    middleware, the pages, `/ws` and the template globals. Connects to nothing yet. Raises
    StartError.

    At its start, the application opens the database, applies REQUIRE_VERIFIED_EMAIL to all accounts
    and starts the runtime. At its end, it closes the sockets, then stops the runtime, the database,
    the process that scores passwords and the hashing threads. Each request, except for static files
    and health checks, loads the current user and, if its method is unsafe, is checked by
    `csrf.protect`, whose CrossSite and InvalidToken are answered with an error page. A static file
    whose name is longer than 255 bytes gets 404.
    """
    unknown = [] if settings else Settings.unknown_names()
    settings = settings or Settings.load()
    log.configure(production=settings.production, worker=settings.worker)
    for sentence in unknown:
        log.log.warning("setting_unknown", detail=sentence)
    app = Quart("quartapp")
    app.request_class = Request
    app.jinja_environment = templating.Environment
    _configure(app, settings)
    auth.init_app(app, settings)
    runtime = _assemble(settings)
    install(app, runtime)

    @app.before_serving
    async def start() -> None:
        await runtime.stack.enter_async_context(open_database(settings))
        await require_verification(settings.verification_required)
        await runtime.start()

    @app.after_serving
    async def stop() -> None:
        await runtime.drain()
        await runtime.stack.aclose()
        await runtime.password_policy.close()
        runtime.hasher.close()
        runtime.markdown.close()

    # The last one that wraps the application is the first to see a request.
    app.asgi_app = AllowedHosts(app.asgi_app, settings)  # type: ignore[method-assign]
    app.asgi_app = RequestBounds(app.asgi_app)  # type: ignore[method-assign]
    app.asgi_app = ResponseHeaders(app.asgi_app, settings)  # type: ignore[method-assign]
    app.asgi_app = Languages(app.asgi_app, settings)  # type: ignore[method-assign]
    routes.init_app(app, settings)
    app.register_blueprint(endpoint.blueprint)
    templating.init_app(app, settings)
    app.asgi_app = PostSerializer(app.asgi_app)  # type: ignore[method-assign]
    if settings.trusted_proxies:
        forwarded = ForwardedHeaders(app.asgi_app, settings.trusted_proxies)
        app.asgi_app = forwarded  # type: ignore[method-assign]

    @app.before_request
    async def identify() -> None:
        if request.endpoint not in UNIDENTIFIED:
            await auth.load_current_user()
            if request.method in csrf.UNSAFE:
                await csrf.protect()
        elif request.endpoint == "static":
            # A name that is longer than the file system allows would be an error instead of a 404.
            values = request.view_args or {}
            if len(values["filename"].encode()) > 255:
                abort(404)

    return app


def _configure(app: Quart, settings: Settings) -> None:
    """Set the secret key and its fallbacks, the name and attributes of Quart's session cookie, the
    limits of a body (64 KiB, 15 s) and of a response (60 s), and no default age for static files.
    FormParser limits the fields of a form."""
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
        BODY_TIMEOUT=15,
        RESPONSE_TIMEOUT=60,
        SEND_FILE_MAX_AGE_DEFAULT=None,
    )


def _assemble(settings: Settings) -> Runtime:
    """Create all parts of a worker, connect them with each other, and return them. Starts none."""
    hub = _hub(settings)
    lease = Lease(settings.worker, settings.worker_id, sockets=hub.__len__)
    receipts = Receipts(hub, lease.worker_id)
    dispatcher = Dispatcher(
        hub, receipts, sweep_seconds=settings.live_sweep_seconds, worker=settings.worker
    )
    membership = Membership()
    barrier = Barrier(
        lease,
        membership,
        count_tabs=receipts.count_tabs,
        count_open=hub.count_tabs,
        folder=settings.neighbours,
    )
    outbox_worker = OutboxWorker(settings)
    account_expiry = AccountExpiry()
    role_expiry = RoleExpiry()
    role_deletions = RoleDeletions()
    open_requests = OpenRequests()
    principals = PrincipalCache(lease, max_entries=settings.principals_per_worker)
    listeners = change_listeners(
        principal_cache=principals,
        lease=lease,
        membership=membership,
        dispatcher=dispatcher,
        receipts=receipts,
        barrier=barrier,
        outbox_worker=outbox_worker,
        account_expiry=account_expiry,
        role_expiry=role_expiry,
        role_deletions=role_deletions,
        open_requests=open_requests,
    )
    return Runtime(
        settings=settings,
        hasher=PasswordHasher.of(settings),
        markdown=MarkdownRenderer(),
        password_policy=PasswordPolicy.of(settings),
        encryption=Encryption.of(settings),
        hub=hub,
        change_stream=ChangeStream(listeners, worker_id=lease.worker_id),
        lease=lease,
        membership=membership,
        barrier=barrier,
        receipts=receipts,
        announcer=Announcer(),
        principal_cache=principals,
        last_seen=LastSeenWriter(),
        hourly_counts=HourlyCountWriter(),
        outbox_worker=outbox_worker,
        account_expiry=account_expiry,
        role_expiry=role_expiry,
        erasure=Erasure(),
        role_deletions=role_deletions,
        audit_sealer=AuditSealer(),
        open_requests=open_requests,
        loop_lag=LoopLagMonitor(),
        dispatcher=dispatcher,
    )


def _hub(settings: Settings) -> Hub:
    """Return the registry of open sockets, with the limits of the settings."""
    limits = Limits(
        sockets=settings.sockets_per_worker,
        per_session=settings.sockets_per_session,
        per_user=settings.sockets_per_user,
        per_address=settings.sockets_per_address,
        handshakes=settings.handshakes_at_once,
    )
    return Hub(limits)
