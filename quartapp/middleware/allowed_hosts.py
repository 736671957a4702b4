"""ASGI middleware that answers only requests for a host name that this application has.

A browser sends the name that its user opened, whatever address that name leads to. So a page whose
name is made to lead here (DNS rebinding) is refused, and no answer depends on a foreign Host.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from quartapp.settings import Settings

# Load balancers and Prometheus ask for these by the address of the machine, or without a name.
PROBES = frozenset({"/livez", "/readyz", "/metrics"})
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(:[0-9]{0,5})?")


class AllowedHosts:
    """Serves the hosts of BASE_URL and ALLOWED_ORIGINS, whatever the port.

    In development also the names of this machine's loopback addresses; in production any host may
    ask for PROBES. Other requests and handshakes are answered with 421, or with 400 if they have no
    host that can be read. X-Forwarded-Host counts for nothing.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        origins = (settings.base_url, *settings.allowed_origins)
        self._names = {_name(urlsplit(origin).netloc) for origin in origins}
        self._loopback = not settings.production
        self._probes = PROBES if settings.production else frozenset[str]()
        self._text = (
            f"This host is not served here. Open {settings.base_url} instead, or set BASE_URL "
            "or ALLOWED_ORIGINS to the address that you open.\n"
        ).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
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
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        headers.append((b"content-length", b"%d" % len(self._text)))
        await send({"type": f"{kind}.start", "status": status.value, "headers": headers})
        return await send({"type": f"{kind}.body", "body": self._text})

    def _status(self, scope: Any) -> HTTPStatus:
        """Whether each host that the request names is served: also the one in its target, which a
        client may write in full (RFC 9112, 3.2.2)."""
        said = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        names = [_name(text) for text in said]
        if scope["path"][:1] not in ("/", "*"):
            names.append(_name(urlsplit(scope["path"]).netloc))
        if len(said) != 1 or None in names:
            return HTTPStatus.BAD_REQUEST
        return HTTPStatus.OK if all(map(self._serves, names)) else HTTPStatus.MISDIRECTED_REQUEST

    def _serves(self, name: str | None) -> bool:
        return name in self._names or (self._loopback and _is_loopback(name or ""))


def _name(authority: str) -> str | None:
    """Return the host of `host:port` in lower case; None if it is no host."""
    found = AUTHORITY.fullmatch(authority.lower())
    return found[1].strip("[]") if found else None


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
