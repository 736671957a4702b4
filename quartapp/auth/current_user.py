"""The user of the current request, and the Quart-Auth extension that reads their cookie."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, cast

from quart import Quart, g, request
from quart_auth import Action, AuthUser, QuartAuth, Unauthorized
from quart_auth import current_user as _current_user

from quartapp import clock
from quartapp.auth import cookies
from quartapp.auth.device import (
    browser_timezone,
    preload_user_agent_parser,
    remote_address,
)
from quartapp.authority.session_rule import EndedSession, Principal, PrincipalOrEnded
from quartapp.i18n import LOCALES, set_locale, timezones
from quartapp.i18n.times import set_zone
from quartapp.models import Role, User
from quartapp.models.authorization.privileges import Holdings
from quartapp.models.base.actor import Actor
from quartapp.policy import ADMIN, Permission
from quartapp.runtime import runtime, settings
from quartapp.settings import Settings


class CurrentUser(AuthUser):
    """The user of a request: the principal of an active session, or an anonymous visitor.

    Await `load()` before the properties are read; `load_current_user` does so for each request.
    For an anonymous visitor, `user_id` and the preferences are None, and `permissions` and
    `withheld` are empty. The other properties that describe the principal, such as `username`,
    raise Unauthorized. `ended` is set if the request carries the cookie of a session that has
    ended, else None.
    """

    def __init__(self, auth_id: str | None, action: Action = Action.PASS) -> None:
        super().__init__(auth_id if isinstance(auth_id, str) else None, action)
        self._state: PrincipalOrEnded | None = None
        self._loaded = False

    async def load(self) -> None:
        """Look up the session of the request's token in the principal cache, which may ask the
        database. Later calls do nothing. Raises what the driver raises."""
        if not self._loaded:
            principals = runtime().principal_cache
            self._state = await principals.state_by_token(self.auth_id) if self.auth_id else None
            self._loaded = True

    @property
    async def is_authenticated(self) -> bool:
        """Load the user, and return whether they are signed in. `login_required` awaits this."""
        await self.load()
        return self.signed_in

    def end(self, ended: EndedSession) -> None:
        """Treat the session as ended for the rest of this request. Writes nothing to the database.

        Also drops the CSRF field that was created for the session.
        """
        self._state = ended
        g.pop("csrf_field", None)

    @property
    def signed_in(self) -> bool:
        return isinstance(self._state, Principal)

    @property
    def ended(self) -> EndedSession | None:
        return self._state if isinstance(self._state, EndedSession) else None

    @property
    def principal(self) -> Principal:
        """The principal of the active session. Raises Unauthorized if there is none."""
        if isinstance(self._state, Principal):
            return self._state
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
        """Names of the roles that give no permissions until the user uses a second factor."""
        return self.principal.withheld if self.signed_in else frozenset()

    def waits_for(self, permission: str) -> bool:
        """Return whether a withheld role has the permission, and no other role of the user does."""
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
    def open_requests(self) -> int:
        """How many requests for roles are open, for users who can grant roles; else 0."""
        may_grant = Permission.USERS_MANAGE in self.permissions
        return runtime().open_requests.count if may_grant else 0

    @property
    def language(self) -> str | None:
        """The language that the user prefers; None leaves the choice to the browser."""
        return self.principal.language if self.signed_in else None

    @property
    def timezone(self) -> str | None:
        """The name of the time zone that the user has chosen, or None."""
        return self.principal.timezone if self.signed_in else None

    @property
    def theme(self) -> str | None:
        """The theme that the user has chosen, "light" or "dark"; None follows the system."""
        return self.principal.theme if self.signed_in else None

    @property
    def fresh(self) -> bool:
        """Whether the user signed in or re-authenticated within the last FRESH_SECONDS."""
        age = clock.now() - self.principal.confirmed_at
        return age.total_seconds() < settings().fresh_seconds

    def may(self, permission: str) -> bool:
        return permission in self.permissions

    def lacks(self, wanted: Collection[str]) -> frozenset[str]:
        """Return which of the permissions the user cannot grant, because they do not hold them.

        A user with the role admin, unless it is withheld, lacks none. For pages that offer choices:
        the models check again when something is granted.
        """
        administers = self.signed_in and ADMIN in set(self.roles) - self.withheld
        return Holdings(self.permissions, everything=administers).lacks(wanted)

    def lacks_over(self, person: User, roles: Iterable[Role]) -> frozenset[str]:
        """Return the permissions that a person has through these roles and this user lacks; none
        for their own account. Roles that the person does not have are ignored.

        For pages that offer actions: the models refuse to manage a user who has one of these.
        """
        if person.id == self.user_id:
            return frozenset()
        held = person.role_ids
        return self.lacks({name for role in roles if role.id in held for name in role.permissions})

    @property
    def actor(self) -> Actor:
        """The actor to pass as `by=` to the models: the user, their address, session and
        permissions, and this worker. For an anonymous visitor, only the address and the worker."""
        worker = runtime().lease.worker_id
        if not self.signed_in:
            return Actor(ip=remote_address(), worker=worker)
        return Actor(
            self.principal.user_id,
            self.principal.username,
            remote_address(),
            self.principal.session_id,
            self.principal.version,
            self.principal.permissions,
            worker,
        )

    def __repr__(self) -> str:
        # The inherited method would show the token.
        name = self.username if self.signed_in else "nobody"
        return f"CurrentUser({name})"


current_user = cast(CurrentUser, _current_user)


def unwrapped_current_user() -> CurrentUser:
    """Return the object behind the proxy `current_user`.

    Each access to an attribute of the proxy looks the object up again, so code that reads many
    attributes uses this.
    """
    return _current_user._get_current_object()  # type: ignore[attr-defined]


def live_permission(permission: str) -> Callable[[], Awaitable[bool]]:
    """Return a function that tells whether the session of this request is active at the time of the
    call, and has the permission then. For answers that are sent for a long time: it needs no
    context of a request. It asks the principal cache, and raises the driver's errors; without a
    session, it returns False."""
    token, principals = unwrapped_current_user().auth_id, runtime().principal_cache

    async def is_allowed() -> bool:
        state = await principals.state_by_token(token) if token else None
        return isinstance(state, Principal) and permission in state.permissions

    return is_allowed


async def signed_in_user() -> User:
    """Read the document of the signed-in user from the database and return it.

    Call it only for a signed-in user. Raises AssertionError if the document is gone.
    """
    user = await User.get(current_user.user_id)
    assert user is not None, "a principal has a user"
    return user


class QuartAuthExtension(QuartAuth):
    """Quart-Auth with fewer allocations and no thread switch in each request."""

    def load_user(self) -> AuthUser:
        """Return the user of this request or handshake: the one that an earlier call created, else
        a new one from its cookie.

        The inherited method creates an anonymous user on each call, even if it does not need it.
        """
        if g and (user := g.get(self.attribute_name)):
            return user
        return super().load_user()

    # The inherited method is a plain function, which Quart would run in a thread for each page.
    async def _template_context(self) -> dict[str, AuthUser]:  # type: ignore[override]
        """Return `current_user` for the templates."""
        return {"current_user": self.load_user()}


def init_app(app: Quart, settings: Settings) -> QuartAuth:
    """Install the session interface and Quart-Auth, and return the extension.

    The cookie with the session's token is HttpOnly and SameSite=Lax, and in production Secure with
    the prefix `__Host-`. It expires after the longest lifetime of a session. Also preloads the user
    agent parser, which takes half a second once in each process.
    """
    secure = settings.production
    preload_user_agent_parser()
    app.session_interface = cookies.CookieSessionInterface()
    return QuartAuthExtension(
        app,
        serializer_class=cast(Any, cookies.serializer_class),
        cookie_name="__Host-session" if secure else "quartapp_session",
        cookie_secure=secure,
        cookie_http_only=True,
        cookie_samesite="Lax",
        duration=settings.remembered_lifetime_seconds,
        user_class=CurrentUser,
    )


async def load_current_user() -> None:
    """Load the current user, set the language and the time zone of the request, and, if signed in,
    note for LastSeenWriter that the session was used.

    For before_request. Refuses nothing. Raises what the driver raises. A user's preferences come
    first, then the zone that timezone.js has stored in a cookie, and the language that `Languages`
    has chosen.

    A request with the header `X-Background` does not count as a use of the session: open pages send
    it by themselves, also when the user is not looking at them.
    """
    user = unwrapped_current_user()
    await user.load()
    if user.language in LOCALES:
        set_locale(user.language)
    set_zone(timezones.find(user.timezone) if user.timezone else browser_timezone())
    if user.signed_in and "X-Background" not in request.headers:
        runtime().last_seen.note(user.principal, remote_address)
