"""Every POST must come from a page of ours, shown to the one who sends it.

Deny by default, before any route runs: the browser's own word on where the request comes from
(Sec-Fetch-Site, Origin), and a masked token bound to the session, or for those not signed in to a
random value in a signed cookie (ASVS 3.5.1).
"""

import base64
import hmac
import secrets
from functools import lru_cache
from typing import Any

from markupsafe import Markup
from quart import current_app, g, request, session
from quart_auth import current_user

UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
FIELD = "csrf_token"
_SIZE = 32


class CrossSite(Exception):
    """The request was made by a page of another site."""


class Stale(Exception):
    """The token is missing or not of this session: an old page, most of the time.

    `ours` says whether the browser vouches that a page of ours made the request.
    """

    def __init__(self, *, ours: bool) -> None:
        self.ours = ours


async def protect() -> None:
    """For before_request of what is UNSAFE. Raises CrossSite or Stale."""
    site, origin = _source()
    if _is_foreign(site, origin):
        raise CrossSite
    if not _fits((await request.form).get(FIELD) or request.headers.get("X-CSRF-Token") or ""):
        raise Stale(ours=from_us())


def from_us() -> bool:
    """Return whether the browser says that a page of this site sent the request."""
    site, origin = _source()
    return not _is_foreign(site, origin) and (site == "same-origin" or bool(origin))


def _source() -> tuple[str | None, str | None]:
    return request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")


def _is_foreign(site: str | None, origin: str | None) -> bool:
    # A page that tells nobody its address sends no origin either (Fetch 3.2): there the browser's
    # other word must do.
    silent = origin == "null" and site == "same-origin"
    foreign = bool(origin) and not silent and not same_origin(origin or "")
    return site not in (None, "same-origin", "none") or foreign


def same_origin(origin: str, scheme: str | None = None, host: str | None = None) -> bool:
    """Whether the origin is this site, or one of those listed; compared whole, never in part.

    This site is what the Host header says: a browser writes there where it sends the request, and
    the cookies with it are those of that host, whatever else leads to us.
    """
    settings = current_app.extensions["quartapp"].settings
    scheme, host = scheme or request.scheme, host or request.host
    # Behind a proxy that ends TLS the request arrives as http.
    schemes = {scheme, "https"} if settings.production else {scheme}
    return origin in {*settings.allowed_origins, *(f"{each}://{host}" for each in schemes)}


def csrf_field() -> Markup:
    """The hidden input that each form carries, the same in all of a page's."""
    if "csrf_field" not in g:
        # Base64 has nothing to be escaped.
        g.csrf_field = Markup(f'<input type="hidden" name="{FIELD}" value="{csrf_token()}">')  # noqa: S704
    return g.csrf_field


def csrf_token() -> str:
    """Masked anew each time, so that compression says nothing of it (BREACH)."""
    mask = secrets.token_bytes(_SIZE)
    return base64.urlsafe_b64encode(mask + _xor(mask, _expected())).decode()


def _fits(token: str) -> bool:
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii"))
    except ValueError:
        return False
    if len(raw) != 2 * _SIZE:
        return False
    return hmac.compare_digest(_xor(raw[:_SIZE], raw[_SIZE:]), _expected())


def _xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a) ^ int.from_bytes(b)).to_bytes(_SIZE)


def _expected() -> bytes:
    return _mac(str(current_app.secret_key), f"csrf {bound_to()}")


def bound_to() -> str:
    """What the pages of this visit are bound to: the session, or a visitor's random value."""
    # The session's id, not its token: a form that was open while the token changed still fits.
    user: Any = current_user._get_current_object()  # type: ignore[attr-defined]
    if user.signed_in:
        return f"session {user.session_id}"
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(16)
    return f"visitor {session['csrf']}"


@lru_cache(maxsize=4096)
def _mac(key: str, text: str) -> bytes:
    return hmac.digest(key.encode(), text.encode(), "sha256")
