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


class InvalidToken(Exception):
    """The token is missing or belongs to another session, mostly because the page is old.

    `same_site` is whether the headers say that a page of this site sent the request.
    """

    def __init__(self, *, same_site: bool) -> None:
        self.same_site = same_site


async def protect() -> None:
    """Check the headers and the token of the current request.

    Raises CrossSite if Sec-Fetch-Site or Origin name another site, and then InvalidToken if neither
    the field `csrf_token` nor, without one, the header X-CSRF-Token has a valid token.

    Call it before each request whose method is in UNSAFE; it does not look at the method. Reads
    the form, and may add a random value to the visitor's session (see `token_binding`).
    """
    site, origin = _source()
    if _is_foreign(site, origin):
        raise CrossSite
    token = (await request.form).get(FIELD) or request.headers.get("X-CSRF-Token") or ""
    if not _is_valid(token):
        raise InvalidToken(same_site=sent_by_this_site())


def sent_by_this_site() -> bool:
    """Whether the headers say that a page of this site sent the request. False if the request has
    neither an Origin nor `Sec-Fetch-Site: same-origin`."""
    site, origin = _source()
    return not _is_foreign(site, origin) and (site == "same-origin" or bool(origin))


def _source() -> tuple[str | None, str | None]:
    """Return the headers Sec-Fetch-Site and Origin of the request."""
    return request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")


def _is_foreign(site: str | None, origin: str | None) -> bool:
    """Whether one of the two headers names another site. A missing header names none."""
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
    """Return the hidden input with the token. It is created once for each request."""
    if "csrf_field" not in g:
        # Base64 contains nothing that needs escaping.
        g.csrf_field = Markup(f'<input type="hidden" name="{FIELD}" value="{csrf_token()}">')  # noqa: S704
    return g.csrf_field


def csrf_token() -> str:
    """Return the token of the session or visitor as URL-safe Base64, masked with random bytes so
    that compression cannot leak it (BREACH). May add a value to the visitor's session."""
    mask = secrets.token_bytes(_SIZE)
    return base64.urlsafe_b64encode(mask + _xor(mask, _expected_mac())).decode()


def _is_valid(token: str) -> bool:
    """Whether the unmasked token is that of this session or visitor. False for malformed text."""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii"))
    except ValueError:
        return False
    if len(raw) != 2 * _SIZE:
        return False
    return hmac.compare_digest(_xor(raw[:_SIZE], raw[_SIZE:]), _expected_mac())


def _xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a) ^ int.from_bytes(b)).to_bytes(_SIZE)


def _expected_mac() -> bytes:
    """Return the HMAC-SHA-256 of `token_binding` with the secret key, which an unmasked token
    equals. May add a value to the visitor's session."""
    return _mac(str(current_app.secret_key), f"csrf {token_binding()}")


def token_binding() -> str:
    """Return the text that tokens are bound to: the session's id, or a random value of the visitor.

    Stores a new random value in the visitor's session cookie if there is none yet.
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
