"""Who is asking. Quart-Auth keeps the token in its signed cookie; here it becomes a person."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

from itsdangerous import URLSafeTimedSerializer
from quart import (
    Quart,
    Response,
    after_this_request,
    current_app,
    g,
    has_request_context,
    request,
    websocket,
)
from quart.sessions import SecureCookieSessionInterface, SessionMixin
from quart_auth import Action, AuthUser, QuartAuth, Unauthorized, login_user
from quart_auth import current_user as _current_user
from ua_parser import parse
from werkzeug.wrappers import Response as WerkzeugResponse

from quartapp import clock, throttle
from quartapp.authority.session_rule import Ended, Principal, Standing
from quartapp.errors import TryLater
from quartapp.log import log
from quartapp.models import Event, Session, User
from quartapp.models.authorization.privileges import Holdings
from quartapp.models.base.actor import Actor
from quartapp.models.base.tokens import TOKEN_LENGTH, digest_of, new_token
from quartapp.models.factors import recovery_codes, totp, wrong_codes
from quartapp.models.factors.factor import Factor
from quartapp.models.factors.wrong_codes import FactorsBlocked
from quartapp.models.sessions.opening import is_known_browser
from quartapp.policy import ADMIN, Permission, may
from quartapp.security.encryption import Seal
from quartapp.security.password_policy import PasswordPolicy
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings

KNOWN_FOR = 365 * 86400
# Of a cookie's value: browsers drop a cookie of more than 4,096 bytes.
LONGEST_VISIT = 3500
# Where Quart's session keeps the messages for the next page.
_FLASHES = "_flashes"
# The fields in which a page of confirmation sends the password and a code, beside those that were
# sent before: no form behind it has fields of these names.
PASSWORD, CODE = "password", "factor_code"
# Who types wrong codes is told of once in so long.
TOLD_EVERY = timedelta(days=1)

P = ParamSpec("P")
T = TypeVar("T")


class Signed(URLSafeTimedSerializer):
    """Signs what is in a cookie, and does not look how old it is.

    A cookie from a host whose clock is ahead seems to come from the future, and would be refused.
    The database says when a session is over.
    """

    def loads(self, s: Any, max_age: int | None = None, *args: Any, **options: Any) -> Any:
        return super().loads(s, None, *args, **options)


@cache
def _signed(keys: tuple[str, ...], salt: str, serializer: Any = None) -> Signed:
    """Made once: Quart and Quart-Auth ask for it with each request."""
    return Signed(keys, salt, serializer, signer_kwargs={"digest_method": hashlib.sha512})


def _serializer(keys: str | Iterable[str], salt: str) -> Signed:
    return _signed((keys,) if isinstance(keys, str) else tuple(keys), salt)


class Visits(SecureCookieSessionInterface):
    """Quart's own session, signed so."""

    def get_signing_serializer(self, app: Quart) -> URLSafeTimedSerializer | None:
        # Whatever signs is the last one.
        keys = (*app.config["SECRET_KEY_FALLBACKS"], str(app.secret_key))
        return _signed(keys, self.salt, self.serializer)

    async def save_session(
        self, app: Quart, session: SessionMixin, response: Response | WerkzeugResponse | None
    ) -> None:
        """Save the session. Drops messages that no page has shown yet, the oldest first, until the
        cookie is short enough for browsers (ASVS 3.3.5)."""
        if session.modified:
            while session.get(_FLASHES) and len(self._value(app, session)) > LONGEST_VISIT:
                session[_FLASHES] = session[_FLASHES][1:]
        await super().save_session(app, session, response)

    def _value(self, app: Quart, session: SessionMixin) -> str:
        serializer = self.get_signing_serializer(app)
        assert serializer is not None, "the application has a secret key"
        return cast(str, serializer.dumps(dict(session)))


class Forbidden(Exception):
    """Signed in, but not allowed: `permission` is what is missing."""

    def __init__(self, permission: Permission) -> None:
        super().__init__(permission.value)
        self.permission = permission


class Unconfirmed(Exception):
    """Signed in too long ago for this. What came with the request was not acted on.

    `because` says why a password or a code that was sent along did not change that: it was wrong,
    or there were too many tries; None if none was sent.
    """

    def __init__(
        self, because: TryLater | WrongPassword | WrongFactor | FactorsBlocked | None = None
    ) -> None:
        self.because = because


class WrongPassword(Exception):
    """Not the password of whoever is signed in."""

    def __init__(self) -> None:
        super().__init__("Incorrect password.")


class WrongFactor(Exception):
    """No code, or not one of the user's, whose account has a second factor."""

    def __init__(self) -> None:
        super().__init__("Incorrect code, or a code that was already used. Try again.")


class CurrentUser(AuthUser):
    """What Quart-Auth's `current_user` is: nobody, or the principal of a living session.

    `await load()` comes first, once for a request; the rest are plain values. `ended` is set for
    one who comes with the cookie of a session that is over.
    """

    def __init__(self, auth_id: str | None, action: Action = Action.PASS) -> None:
        super().__init__(auth_id if isinstance(auth_id, str) else None, action)
        self._standing: Standing | None = None
        self._loaded = False

    async def load(self) -> None:
        """Finds out for whom the token speaks. Raises what the driver raises."""
        if not self._loaded:
            principals = current_app.extensions["quartapp"].principals
            self._standing = await principals.by_token(self.auth_id) if self.auth_id else None
            self._loaded = True

    @property
    async def is_authenticated(self) -> bool:
        """What `login_required` asks."""
        await self.load()
        return self.signed_in

    def end(self, ended: Ended) -> None:
        """Take note that the session has ended during this request."""
        self._standing = ended
        g.pop("csrf_field", None)

    @property
    def signed_in(self) -> bool:
        return isinstance(self._standing, Principal)

    @property
    def ended(self) -> Ended | None:
        return self._standing if isinstance(self._standing, Ended) else None

    @property
    def principal(self) -> Principal:
        """Raises Unauthorized for nobody."""
        if isinstance(self._standing, Principal):
            return self._standing
        raise Unauthorized

    @property
    def user_id(self) -> Any:
        return self.principal.user_id if self.signed_in else None

    @property
    def permissions(self) -> frozenset[str]:
        return self.principal.permissions if self.signed_in else frozenset()

    @property
    def session_id(self) -> Any:
        return self.principal.session_id

    @property
    def username(self) -> str:
        return self.principal.username

    @property
    def roles(self) -> tuple[str, ...]:
        return self.principal.roles

    @property
    def withheld(self) -> frozenset[str]:
        """Roles that give nothing until they show a second factor."""
        return self.principal.withheld if self.signed_in else frozenset()

    def waits_for(self, permission: str) -> bool:
        """Whether they would have it if they showed a second factor."""
        return self.signed_in and permission in self.principal.withheld_permissions

    @property
    def version(self) -> int:
        return self.principal.version

    @property
    def cursor(self) -> str:
        return str(self.principal.cursor)

    @property
    def unread(self) -> int:
        return self.principal.unread

    @property
    def fresh(self) -> bool:
        """Whether they have shown who they are lately enough for what is sensitive."""
        age = clock.now() - self.principal.confirmed_at
        return age.total_seconds() < settings().fresh_seconds

    def may(self, permission: str) -> bool:
        return permission in self.permissions

    def lacks(self, wanted: Collection[str]) -> frozenset[str]:
        """The permissions that they do not hold, and so can neither give nor manage others with
        them. Pages ask this; the verbs decide."""
        administers = self.signed_in and ADMIN in set(self.roles) - self.withheld
        return Holdings(self.permissions, everything=administers).lacks(wanted)

    @property
    def actor(self) -> Actor:
        """For the `by=` of the domain's verbs."""
        if not self.signed_in:
            return Actor(ip=remote_address(), worker=_worker())
        return Actor(
            self.principal.user_id,
            self.principal.username,
            remote_address(),
            self.principal.session_id,
            self.principal.version,
            self.principal.permissions,
            _worker(),
        )

    def __repr__(self) -> str:
        # The inherited one shows the token.
        who = self.username if self.signed_in else "nobody"
        return f"CurrentUser({who})"


current_user = cast(CurrentUser, _current_user)


def who() -> CurrentUser:
    """The object behind `current_user`, for code that asks it many things: each costs a search."""
    return _current_user._get_current_object()  # type: ignore[attr-defined]


class Extension(QuartAuth):
    """Quart-Auth, but for what would cost each request more than it has to."""

    def load_user(self) -> AuthUser:
        """Asked for several times in each request: theirs makes a nobody each time, in case."""
        if g and (user := g.get(self.attribute_name)):
            return user
        return super().load_user()

    # There it is a plain function. Quart takes such a one for one that blocks, and would go to a
    # thread and back for each page.
    async def _template_context(self) -> dict[str, AuthUser]:  # type: ignore[override]
        return {"current_user": self.load_user()}


def preload() -> None:
    """Builds the tables that tell browsers apart. It takes half a second, and the first to ask for
    one would wait for it."""
    parse("")


def init_app(app: Quart, settings: Settings) -> QuartAuth:
    """Quart-Auth with a cookie that lives as long as a session can, and no longer."""
    secure = settings.production
    preload()
    app.session_interface = Visits()
    return Extension(
        app,
        serializer_class=cast(Any, _serializer),
        cookie_name="__Host-session" if secure else "quartapp_session",
        cookie_secure=secure,
        cookie_http_only=True,
        cookie_samesite="Lax",
        duration=settings.remembered_lifetime_seconds,
        user_class=CurrentUser,
    )


async def load_current_user() -> None:
    """For before_request: find out who asks, and note that the session was used.

    Requests with the header `X-Background`, which open pages send by themselves, are no use of the
    session: the page may be unattended.
    """
    user = who()
    await user.load()
    if user.signed_in and "X-Background" not in request.headers:
        current_app.extensions["quartapp"].seen.note(user.principal, remote_address)


def permission_required(
    permission: Permission,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Lets in who may. Under `login_required`, which turns away who is nobody. Raises Forbidden."""

    def decorate(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(view)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if not may(current_user, permission):
                raise Forbidden(permission)
            return await view(*args, **kwargs)

        return wrapper

    return decorate


def fresh_login_required(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """For what is sensitive: a POST needs a sign-in or a confirmation of a short while ago.

    Under `login_required` and what else is required. A stale POST raises Unconfirmed, whose page
    sends the same fields here again with a password beside them: then it is confirmed and done in
    one request. See docs/adr/0030. A GET may be stale.
    """

    @wraps(view)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if request.method == "POST" and not current_user.fresh:
            sent = await request.form
            password = sent.get(PASSWORD)
            if password is None:
                raise Unconfirmed
            try:
                await confirm(password, sent.get(CODE, ""))
            except (TryLater, WrongPassword, WrongFactor, FactorsBlocked) as error:
                raise Unconfirmed(error) from error
        return await view(*args, **kwargs)

    return wrapper


async def confirm(password: str, code: str = "") -> None:
    """Check the password, and a code if the account has a second factor; then renew the session.

    A code is looked at behind a right password only. Raises WrongPassword, WrongFactor,
    FactorsBlocked, TryLater when there were too many tries, and what `renew` raises.
    """
    user = await me()
    async with guessing_again(user) as guess:
        guess.right = await hasher().verify(password, user.password_hash)
    if not guess.right:
        log.warning("authn_login_fail", login=current_user.username, ip=remote_address())
        raise WrongPassword
    if user.factors and await shown_code(user, code) is None:
        raise WrongFactor
    await renew()


async def renew() -> None:
    """Make the session fresh, and give its browser a new token; the old one is void at once.

    Call it when the user has shown who they are. Raises Unauthorized when the session has ended
    meanwhile. Open pages stay connected.
    """
    session = await Session.get(current_user.session_id)
    token = session and await session.confirm(by=current_user.actor)
    if not session or not token:
        raise Unauthorized
    # Whoever goes by the old token is forgotten everywhere, here too, before the new one is used.
    await settle()
    log.info("session_renewed", user=current_user.username, session=str(session.id))
    login_user(CurrentUser(token), remember=session.remembered)
    await current_user.load()


async def shown_code(user: User, code: str) -> Factor | None:
    """Return which second factor of the user the code is, and use it up; None if it is none.

    Raises TooMany, and FactorsBlocked after too many wrong ones.
    """
    async with guessing_factor(user) as guess:
        factor = await _factor_of(user, code)
        guess.right = factor is not None
    return factor


@asynccontextmanager
async def guessing_factor(user: User) -> AsyncIterator[throttle.Guess]:
    """Room for one second factor of somebody who has shown the password, to be judged inside.

    Counted for the account, browsers that it is known by apart: whoever gets here knows the
    password, and what they use up, they use up of its owner's. Wrong ones are told to the owner.
    Raises TooMany, and FactorsBlocked after too many in a row.
    """
    browser = known_browser()
    known = browser is not None and await is_known_browser(user, browser=browser)
    account = f"second step {user.id} with {browser}" if known else f"second step {user.id}"
    here = throttle.neighbourhood(remote_address())
    async with throttle.guessing(
        throttle.Key(account, settings().limit_factor, own=True),
        throttle.Key(f"second step from {here}", settings().limit_sign_in_address),
    ) as guess:
        last = await wrong_codes.begin(user, known=known)
        yield guess
    if guess.right:
        await wrong_codes.forgive(user, known=known)
        return
    log.warning("authn_login_fail", login=user.username, ip=remote_address(), step=2)
    failed = await throttle.tally("wrong codes", str(user.id), within=TOLD_EVERY)
    # Once, and not for a slip of the owner.
    if last or failed == settings().limit_factor.amount:
        await user.warn_of_wrong_codes(ip=remote_address(), blocked=last)


async def _factor_of(user: User, code: str) -> Factor | None:
    plain = totp.plain(code)
    if len(plain) == totp.DIGITS and plain.isascii() and plain.isdigit():
        return Factor.TOTP if await totp.accept(user, plain, seal=seal()) else None
    by = Actor(user.id, user.username, remote_address())
    left = await recovery_codes.use(user, code, by=by)
    return None if left is None else Factor.RECOVERY_CODE


@asynccontextmanager
async def guessing_again(user: User | None) -> AsyncIterator[throttle.Guess]:
    """For a password that is asked of somebody signed in: see `throttle.guessing`.

    Counted for the session, and for the address too where the account has not been opened in this
    browser: as where somebody has brought along the cookies of many.
    """
    mine = f"confirmation {current_user.session_id}"
    keys = [throttle.Key(mine, settings().limit_confirmation, own=True)]
    browser = known_browser()
    if not (browser and await is_known_browser(user, browser=browser)):
        here = f"confirmation from {throttle.neighbourhood(remote_address())}"
        keys.append(throttle.Key(here, settings().limit_sign_in_address))
    async with throttle.guessing(*keys) as guess:
        yield guess


async def settle(event: Event | None = None) -> str:
    """For views that change authority: returns when no worker goes by the old one.

    With the audit event, says what became of the tabs that it ended: a sentence to add to
    another, or nothing if there were none.
    """
    passed = await current_app.extensions["quartapp"].barrier.passed(event)
    return (await passed.reach(event)).sentence


def _worker() -> str:
    return current_app.extensions["quartapp"].lease.worker_id


def remote_address() -> str | None:
    """Where the request comes from: what the proxies that are trusted say of it, else the peer."""
    scope = request if has_request_context() else websocket
    return scope.remote_addr


def device() -> str:
    """The browser and system that a request comes from, as a person would name them."""
    header = request.headers.get("User-Agent", "")[:512]
    found = parse(header)
    browser = found.user_agent.family if found.user_agent else ""
    system = found.os.family if found.os else ""
    return " on ".join(part for part in (browser, system) if part) or "Unknown device"


def known_browser() -> str | None:
    """What this browser is known again by: the digest of a cookie that it keeps for a year. It
    opens nothing; it says that somebody has been here before."""
    token = _browser_token()
    return token and digest_of(token)


def browser() -> str:
    """The same; one that is not known yet gets the cookie now."""
    token = _browser_token() or new_token()[0]

    @after_this_request
    async def keep(response: Any) -> Any:
        response.set_cookie(
            _browser_cookie(),
            token,
            max_age=KNOWN_FOR,
            secure=settings().production,
            httponly=True,
            samesite="Lax",
        )
        return response

    return digest_of(token)


def _browser_token() -> str | None:
    token = request.cookies.get(_browser_cookie(), "")
    return token if len(token) == TOKEN_LENGTH else None


def _browser_cookie() -> str:
    return "__Host-browser" if settings().production else "quartapp_browser"


async def me() -> User:
    """Whoever is signed in, as the database has them now."""
    user = await User.get(current_user.user_id)
    assert user is not None, "a principal has a user"
    return user


def settings() -> Settings:
    return current_app.extensions["quartapp"].settings


def hasher() -> PasswordHasher:
    return current_app.extensions["quartapp"].hasher


def password_policy() -> PasswordPolicy:
    return current_app.extensions["quartapp"].password_policy


def seal() -> Seal:
    return current_app.extensions["quartapp"].seal
