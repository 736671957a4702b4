"""ASGI middleware that adds the security headers to every response (ASVS 3.4, 14.3.2).

As middleware it also covers responses to errors inside the application, and costs a fifth of what
an `after_request` function would.
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
    # Means the same as frame-ancestors, for scanners and old browsers.
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
HSTS = {"Strict-Transport-Security": "max-age=63072000; includeSubDomains"}
# Pages depend on the signed-in user and can show personal data.
PAGE = {"Cache-Control": "no-store", "Vary": "Accept-Language, Cookie, Origin, Sec-Fetch-Site"}
FILE = {"Cache-Control": "no-cache"}
STAMPED = {"Cache-Control": "public, max-age=31536000, immutable"}
OUR_NAMES = {name.lower().encode() for name in (*ALWAYS, *HSTS, "Cache-Control")}


class ResponseHeaders:
    """Adds the security headers that a response does not set itself, and sets its Cache-Control.

    The response's own Cache-Control is replaced: pages get `no-store`; files under `/static/` get
    `no-cache`, or a year if the query begins with `v=`. Pages also get a Vary header, beside their
    own. Handshakes of sockets get no headers.

    Also adds the client's address to the log lines of the request, counts responses by method and
    status, and measures the seconds until the application returns.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        """Prepare the headers of pages and files. Only production gets HSTS."""
        self._app = app
        always = {**ALWAYS, **(HSTS if settings.production else {})}
        self._page = _raw({**always, **PAGE})
        self._file = _raw({**always, **FILE})
        self._stamped = _raw({**always, **STAMPED})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and add the headers when its response starts.

        The client's address is added to the log lines of HTTP requests and of sockets; everything
        else is done for HTTP only. Exceptions of the application are passed on. The time is
        measured also then, but a request without a response is not counted. Methods that are not in
        METHODS are counted as OTHER.
        """
        if scope.get("client"):
            log.add_to_request(ip=scope["client"][0])
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
        """Return our headers for a page or a file; the response's own are not among them.

        A file under `/static/` may be cached for a year if the status is 200 and the query begins
        with `v=`. The value is not compared with the content.
        """
        if not scope["path"].startswith("/static/"):
            return self._page
        # Our pages put a hash of the content there, so a new content has a new URL.
        stamped = message["status"] == 200 and scope["query_string"].startswith(b"v=")
        return self._stamped if stamped else self._file


def _join(own: Headers, ours: Headers) -> Headers:
    """Return the response's own headers without Cache-Control, and those of ours that it lacks.

    Our Vary is always added, beside the response's own.
    """
    names = {name for name, _ in own}
    if names.isdisjoint(OUR_NAMES):
        return [*own, *ours]
    own = [each for each in own if each[0] != b"cache-control"]
    names -= {b"cache-control", b"vary"}
    return [*own, *(each for each in ours if each[0] not in names)]


# Cached, because looking up a metric by its labels takes longer than counting.
_answers = cache(metrics.REQUESTS.labels)
_seconds = cache(metrics.REQUEST_SECONDS.labels)


def _raw(headers: dict[str, str]) -> Headers:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
