"""What every request passes on its way in, and every answer on its way out, errors included: the
log is told whence it comes; it is counted, and gets its headers.

Around the application and not in it, because it costs a fifth there of what it costs inside, and
because nothing that goes wrong inside can get past it (ASVS 3.4, 14.3.2).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from typing import Any

from quartapp import log, metrics
from quartapp.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

METHODS = {"GET", "HEAD", "POST", "OPTIONS"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "object-src 'none'",
        "frame-ancestors 'none'",
    )
)
ALWAYS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # Says what frame-ancestors says, for scanners and old proxies.
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
HSTS = {"Strict-Transport-Security": "max-age=63072000; includeSubDomains"}
# Pages differ by who looks, and each may be about somebody.
PAGE = {"Cache-Control": "no-store", "Vary": "Cookie, Origin, Sec-Fetch-Site"}
FILE = {"Cache-Control": "no-cache"}
STAMPED = {"Cache-Control": "public, max-age=31536000, immutable"}
OURS = {name.lower().encode() for name in (*ALWAYS, *HSTS, "Cache-Control")}


class Edge:
    """Wraps the application. What an answer says itself stays, but for how long it may be kept."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        always = {**ALWAYS, **(HSTS if settings.production else {})}
        self._page = _raw({**always, **PAGE})
        self._file = _raw({**always, **FILE})
        self._stamped = _raw({**always, **STAMPED})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("client"):
            log.note(ip=scope["client"][0])
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        method = scope["method"] if scope["method"] in METHODS else "OTHER"

        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _join(message["headers"], self._headers(scope, message))
                _answers(method, message["status"]).inc()
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            _seconds(method).observe(time.perf_counter() - began)

    def _headers(self, scope: Scope, message: Any) -> Headers:
        if not scope["path"].startswith("/static/"):
            return self._page
        # A stamp names the content: what it leads to never changes.
        stamped = message["status"] == 200 and scope["query_string"].startswith(b"v=")
        return self._stamped if stamped else self._file


def _join(own: Headers, ours: Headers) -> Headers:
    said = {name for name, _ in own}
    if said.isdisjoint(OURS):
        return [*own, *ours]
    own = [each for each in own if each[0] != b"cache-control"]
    said -= {b"cache-control", b"vary"}
    return [*own, *(each for each in ours if each[0] not in said)]


# Finding them by their labels costs the library more than counting does.
_answers = cache(metrics.REQUESTS.labels)
_seconds = cache(metrics.SECONDS.labels)


def _raw(headers: dict[str, str]) -> Headers:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
