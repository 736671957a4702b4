"""What is known about the device of a request: address, name, time zone, and earlier sign-ins."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from quart import after_this_request, has_request_context, request, websocket
from ua_parser import parse

from quartapp.i18n import timezones
from quartapp.i18n.devices import UNKNOWN
from quartapp.models.base.tokens import TOKEN_LENGTH, digest_of, new_token
from quartapp.runtime import settings

KNOWN_BROWSER_SECONDS = 365 * 86400
TIMEZONE_SECONDS = 365 * 86400


def remote_address() -> str | None:
    """Return the address of the client of the current request or handshake, as trusted proxies
    report it, else that of the peer. None if the server does not know it."""
    scope = request if has_request_context() else websocket
    return scope.remote_addr


def device_name() -> str:
    """Return the browser and operating system of the request, such as "Firefox on Linux".

    Taken from the first 512 characters of User-Agent. Without a known part: "Unknown device".
    """
    header = request.headers.get("User-Agent", "")[:512]
    found = parse(header)
    browser = found.user_agent.family if found.user_agent else ""
    system = found.os.family if found.os else ""
    return " on ".join(part for part in (browser, system) if part) or UNKNOWN


def browser_timezone() -> ZoneInfo | None:
    """Return the time zone that timezone.js has stored in its cookie, or None if there is no such
    cookie or it names no zone."""
    return timezones.find(request.cookies.get(_timezone_cookie()))


def timezone_cookie_template() -> str:
    """Return the text that timezone.js assigns to `document.cookie`, with `%` for the name of the
    zone. In production it has the prefix `__Host-` and is Secure, as all cookies (ASVS 3.3.1)."""
    secure = "; secure" if settings().production else ""
    return f"{_timezone_cookie()}=%; path=/; max-age={TIMEZONE_SECONDS}; samesite=lax{secure}"


def preload_user_agent_parser() -> None:
    """Build the tables of the user agent parser, which takes half a second.

    Otherwise the first request that needs them would wait for it.
    """
    parse("")


def known_browser() -> str | None:
    """Return the digest that identifies this browser, or None if it has no browser cookie.

    `remember_browser` sets the cookie at sign-in, for a year. It grants no access: it tells rate
    limits and notifications that an account was used in this browser before. `is_known_browser`
    checks whether that was a given account.
    """
    token = _browser_token()
    return token and digest_of(token)


def remember_browser() -> str:
    """Return the digest that identifies this browser, and set its cookie for another year on the
    response of this request. A browser that has no such cookie gets a new random token.
    """
    token = _browser_token() or new_token()[0]

    @after_this_request
    async def set_cookie(response: Any) -> Any:
        response.set_cookie(
            _browser_cookie(),
            token,
            max_age=KNOWN_BROWSER_SECONDS,
            secure=settings().production,
            httponly=True,
            samesite="Lax",
        )
        return response

    return digest_of(token)


def _browser_token() -> str | None:
    """Return the value of the browser's cookie, or None if it has not the length of a token."""
    token = request.cookies.get(_browser_cookie(), "")
    return token if len(token) == TOKEN_LENGTH else None


def _browser_cookie() -> str:
    return "__Host-browser" if settings().production else "quartapp_browser"


def _timezone_cookie() -> str:
    return "__Host-timezone" if settings().production else "timezone"
