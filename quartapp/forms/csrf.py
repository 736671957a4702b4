"""Protection against cross-site request forgery (ASVS 3.5.1).

A request that changes something needs two things. Its headers Sec-Fetch-Site and Origin, as far as
the browser sends them, must name this site. And it must carry a masked token that is bound to the
session or, for visitors, to a random value in the signed session cookie.
"""

import base64
import hmac
import secrets
from functools import lru_cache
from typing import Any

from markupsafe import Markup
from quart import current_app, g, request, session
from quart_auth import current_user

from quartapp import runtime

UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
FIELD = "csrf_token"
_SIZE = 32


class CrossSite(Exception):
    """The headers say that a page of another site sent the request."""


class Stale(Exception):
    """The token is missing or belongs to another session, mostly because the page is old.

    `ours` is whether the headers say that a page of this site sent the request.
    """

    def __init__(self, *, ours: bool) -> None:
        self.ours = ours


async def protect() -> None:
    """Check the current request. Raises CrossSite or Stale.

    Call it before each request whose method is in UNSAFE; it does not look at the method. Reads
    the form, and may add a random value to the visitor's session (see `bound_to`).
    """
    site, origin = _source()
    if _is_foreign(site, origin):
        raise CrossSite
    if not _fits((await request.form).get(FIELD) or request.headers.get("X-CSRF-Token") or ""):
        raise Stale(ours=from_us())


def from_us() -> bool:
    """Whether the headers say that a page of this site sent the request. False without headers."""
    site, origin = _source()
    return not _is_foreign(site, origin) and (site == "same-origin" or bool(origin))


def _source() -> tuple[str | None, str | None]:
    return request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")


def _is_foreign(site: str | None, origin: str | None) -> bool:
    # A page with Referrer-Policy no-referrer sends the origin "null" (Fetch, section 3.2). Then
    # Sec-Fetch-Site decides.
    silent = origin == "null" and site == "same-origin"
    foreign = bool(origin) and not silent and not same_origin(origin or "")
    return site not in (None, "same-origin", "none") or foreign


def same_origin(origin: str, scheme: str | None = None, host: str | None = None) -> bool:
    """Whether the origin equals this site's origin or one of ALLOWED_ORIGINS.

    The host of this site is that of the Host header (or `host`): a browser sends the cookies of
    that host. In production https is accepted besides the scheme of the request.
    """
    settings = runtime.settings()
    scheme, host = scheme or request.scheme, host or request.host
    # Behind a proxy that terminates TLS, the request arrives as http.
    schemes = {scheme, "https"} if settings.production else {scheme}
    return origin in {*settings.allowed_origins, *(f"{each}://{host}" for each in schemes)}


def csrf_field() -> Markup:
    """Return the hidden input with the token. All forms of a page get the same one."""
    if "csrf_field" not in g:
        # Base64 contains nothing that needs escaping.
        g.csrf_field = Markup(f'<input type="hidden" name="{FIELD}" value="{csrf_token()}">')  # noqa: S704
    return g.csrf_field


def csrf_token() -> str:
    """Return the token, masked with random bytes so that compression cannot leak it (BREACH)."""
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
    """Return the text that tokens are bound to: the session's id, or a random value of the visitor.

    Stores a random value in the visitor's session cookie if there is none yet.
    """
    # The id, not the token: forms stay valid when the token of the session is replaced.
    user: Any = current_user._get_current_object()  # type: ignore[attr-defined]
    if user.signed_in:
        return f"session {user.session_id}"
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(16)
    return f"visitor {session['csrf']}"


@lru_cache(maxsize=4096)
def _mac(key: str, text: str) -> bytes:
    return hmac.digest(key.encode(), text.encode(), "sha256")
