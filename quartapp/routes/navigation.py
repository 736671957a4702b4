"""The navigation in the header of each page. Its HTML is cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from quartapp.i18n import current_locale
from quartapp.i18n import lazy_gettext as _

if TYPE_CHECKING:
    from quartapp.auth.current_user import CurrentUser


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the navigation, hidden from users who lack its permission, if it has one, or all of
    several, which spaces separate. After "g", its key opens it. A `counted` link shows the number
    of open requests.

    `icon` is the name of an icon, for links at the side of an area. `below` has the addresses of
    further pages that belong to this one. The pages under an address belong to it too.
    """

    href: str
    text: str
    permission: str = ""
    key: str = ""
    icon: str = ""
    below: tuple[str, ...] = ()
    counted: bool = False


MAIN = (Link("/posts", _("Posts"), key="p"),)
VISITORS = (Link("/login", _("Sign in")), Link("/register", _("Register")))
ADMINISTRATION = (
    Link("/admin", _("Dashboard"), "users.read sessions.manage users.manage events.read", "d"),
    Link("/admin/users", _("Users"), "users.read", "u"),
    Link("/admin/invitations", _("Invitations"), "users.manage", "i"),
    Link("/admin/requests", _("Requests"), "users.manage", "q", counted=True),
    Link("/admin/roles", _("Roles"), "roles.manage", "r"),
    Link("/admin/sessions", _("Sessions"), "sessions.manage", "s"),
    Link("/admin/events", _("Audit log"), "events.read", "l"),
)
NOTIFICATIONS = Link("/account/notices", _("Notifications"), key="n")
ACCOUNT = (Link("/account", _("Account"), key="a"), Link("/account/sessions", _("Active sessions")))
# The pages of the settings area, in the order of the navigation at its side.
ACCOUNT_AREA = (
    Link("/account", _("Overview"), icon="info"),
    Link("/account/profile", _("Profile"), icon="user"),
    Link(
        "/account/security",
        _("Security"),
        icon="shield",
        below=("/account/password", "/account/email", "/account/factors", "/verify"),
    ),
    Link("/account/sessions", _("Sessions"), icon="laptop"),
    Link("/account/roles", _("Roles"), icon="key"),
    Link("/account/notices", _("Notifications"), icon="bell"),
    Link("/account/timeline", _("Activity"), icon="history"),
    Link("/account/export", _("Data"), icon="download", below=("/account/delete",)),
    Link("/account/preferences", _("Preferences"), icon="sliders"),
)
_CSRF_FIELD = Markup("<!-- CSRF field -->")
# The headers of this many kinds of users are kept, about 3 KB each.
CACHED = 1024


@dataclass(frozen=True, slots=True)
class Viewer:
    """Everything about a user that the navigation shows or depends on; a visitor has no name."""

    username: str = ""
    permissions: frozenset[str] = frozenset()
    unread: int = 0
    user_id: str = ""
    open_requests: int = 0

    def may(self, permission: str) -> bool:
        """Return whether the user holds the permission."""
        return permission in self.permissions


def renderer(environment: jinja2.Environment) -> Callable[[CurrentUser, str, str], Markup]:
    """Return the function `navigation(user, path, csrf_field)` for the templates.

    It returns the links in the header for a user or visitor on the page at `path`. Everything that
    the HTML depends on is in the key of its cache, so it cannot outlive a change of permissions;
    but for the CSRF field of the form for signing out, which is put into the cached HTML.
    """

    @lru_cache(CACHED)
    def rendered(viewer: Viewer, current: str, locale: str) -> Markup:
        html = environment.get_template("macros/navigation.html").render(
            current_user=viewer,
            current=current,
            main=MAIN,
            visitors=VISITORS,
            administration=ADMINISTRATION,
            notifications=NOTIFICATIONS,
            account=(_profile(viewer.username), *ACCOUNT),
            csrf_field=_CSRF_FIELD,
        )
        return Markup(html)  # noqa: S704

    def navigation(user: CurrentUser, path: str, csrf_field: str) -> Markup:
        viewer = Viewer()
        if user.signed_in:
            viewer = Viewer(
                *(user.username, user.permissions, user.unread, str(user.user_id)),
                user.open_requests,
            )
        html = rendered(viewer, _current(path, viewer.username), current_locale())
        return html.replace(_CSRF_FIELD, csrf_field)

    return navigation


def _profile(username: str) -> Link:
    return Link(f"/users/{quote(username)}", _("Profile"))


def _current(path: str, username: str) -> str:
    """Return the href of the link to the page at `path`, or of the longest one above it followed by
    "/"; empty if there is none."""
    for href in _LONGEST_FIRST:
        if path == href:
            return href
        if path.startswith(f"{href}/"):
            return f"{href}/"
    return _profile(username).href if path == f"/users/{username}" else ""


_LONGEST_FIRST = sorted(
    (link.href for link in (*MAIN, *VISITORS, *ADMINISTRATION, NOTIFICATIONS, *ACCOUNT)),
    key=len,
    reverse=True,
)


def current_in(area: tuple[Link, ...], path: str) -> str:
    """Return the href of the link of the area to whose pages the page at `path` belongs: the one
    with the longest address above it. An empty text if there is none."""
    above = [
        (len(address), link.href)
        for link in area
        for address in (link.href, *link.below)
        if path == address or path.startswith(f"{address}/")
    ]
    return max(above)[1] if above else ""
