"""ASGI middleware that refuses requests for a host name that this application does not have.

A browser sends the host name that its user opened, also if somebody else controls that name and
points it to this server (DNS rebinding). Such requests are refused, so no response depends on a
foreign Host header.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from quartapp.i18n import gettext as _
from quartapp.settings import Settings

# Load balancers and Prometheus ask for these by the address of the machine, or without a name.
PROBES = frozenset({"/livez", "/readyz", "/metrics"})
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(:[0-9]{0,5})?")


class AllowedHosts:
    """Serves the hosts of BASE_URL and ALLOWED_ORIGINS, with any port.

    In development, it also serves `localhost` and loopback addresses. In production, requests for
    PROBES are served under any host. Other requests and handshakes get a plain text answer: 421, or
    400 if there is no single, well-formed Host header. X-Forwarded-Host is ignored.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        """Collect the host names of BASE_URL and ALLOWED_ORIGINS."""
        self._app = app
        origins = (settings.base_url, *settings.allowed_origins)
        self._names = {_name(urlsplit(origin).netloc) for origin in origins}
        self._loopback = not settings.production
        self._probes = PROBES if settings.production else frozenset[str]()
        self._base_url = settings.base_url

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the application, or answer 400 or 421. A refused handshake of a server that cannot
        send a response to it is closed instead, which the client sees as 403."""
        status = HTTPStatus.OK
        if scope["type"] in ("http", "websocket") and scope["path"] not in self._probes:
            status = self._status(scope)
        if status is HTTPStatus.OK:
            return await self._app(scope, receive, send)
        kind = "http.response"
        if scope["type"] == "websocket":
            await receive()
            kind = "websocket.http.response"
            if kind not in (scope.get("extensions") or {}):
                return await send({"type": "websocket.close"})
        text = _(
            "This host is not served here. Open %(url)s instead, or set BASE_URL or "
            "ALLOWED_ORIGINS to the address that you open.",
            url=self._base_url,
        )
        body = f"{text}\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": f"{kind}.start", "status": status.value, "headers": headers})
        return await send({"type": f"{kind}.body", "body": body})

    def _status(self, scope: Any) -> HTTPStatus:
        """Return OK if every host that the request names is served, 421 if one is not, and 400 if
        there is not exactly one Host header or a name is malformed.

        The request target may be a full URL and so name a host too (RFC 9112, 3.2.2).
        """
        hosts = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        names = [_name(text) for text in hosts]
        if scope["path"][:1] not in ("/", "*"):
            names.append(_name(urlsplit(scope["path"]).netloc))
        if len(hosts) != 1 or None in names:
            return HTTPStatus.BAD_REQUEST
        return HTTPStatus.OK if all(map(self._serves, names)) else HTTPStatus.MISDIRECTED_REQUEST

    def _serves(self, name: str | None) -> bool:
        """Return whether the name is one of the configured hosts or, in development, a loopback
        host."""
        return name in self._names or (self._loopback and _is_loopback(name or ""))


def _name(authority: str) -> str | None:
    """Return the host of `host:port` in lower case, without brackets and final dot; None if it is
    malformed."""
    found = AUTHORITY.fullmatch(authority.lower())
    return found[1].strip("[]") if found else None


def _is_loopback(name: str) -> bool:
    """Return whether the name is `localhost` or a loopback address."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
