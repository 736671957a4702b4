"""ASGI middleware for the headers in which trusted proxies name the client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# Key in the ASGI scope of a request that came through a trusted proxy.
FORWARDED = "quartapp.forwarded"


class ForwardedHeaders:
    """Replaces the address and the scheme of a trusted proxy by those of its client.

    X-Forwarded-For and X-Forwarded-Proto are read only if the peer is one of `trusted`. Proxies
    append to them, so the client is the last entry that is not a trusted proxy; a client can invent
    only entries to the left of it. X-Forwarded-Host and other headers are ignored. The application
    gets a copy of the scope with the new `client`, `scheme` and the key FORWARDED.
    """

    def __init__(self, app: Any, trusted: Sequence[Network]) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Call the application, with a changed copy of the scope if the peer is trusted."""
        if scope["type"] in ("http", "websocket") and scope.get("client"):
            peer = parse(scope["client"][0])
            if peer is not None and self._is_trusted(peer):
                scope = {**scope, **self._client_of(scope, peer)}
        await self._app(scope, receive, send)

    def _client_of(self, scope: dict[str, Any], peer: Address) -> dict[str, Any]:
        """Return the values of the scope to replace: `client` with port 0, FORWARDED, and `scheme`
        if the last X-Forwarded-Proto is http or https.

        Reads X-Forwarded-For from the right to the first address that is not trusted, or to an
        entry that is no address; then the client is the last address before that, or the peer.
        """
        client = peer
        for entry in reversed(_entries(scope, b"x-forwarded-for")):
            found = parse(entry)
            if found is None:
                break
            client = found
            if not self._is_trusted(client):
                break
        seen: dict[str, Any] = {"client": (str(client), 0), FORWARDED: True}
        proto = next(reversed(_entries(scope, b"x-forwarded-proto")), "").lower()
        if proto in ("http", "https"):
            secure = proto == "https"
            socket = scope["type"] == "websocket"
            seen["scheme"] = ("wss" if secure else "ws") if socket else proto
        return seen

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def parse(text: str) -> Address | None:
    """Return the address in a text as proxies write it, with or without port, zone, brackets and
    quotes.

    An IPv4 address mapped into IPv6 is returned as IPv4. None if the text is no address.
    """
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket that takes both kinds shows an IPv4 peer as ::ffff:192.0.2.1.
    return getattr(address, "ipv4_mapped", None) or address


def _entries(scope: dict[str, Any], name: bytes) -> list[str]:
    """Return the comma-separated entries of all headers of this name, in order, without blanks."""
    values: Iterable[bytes] = (value for key, value in scope["headers"] if key.lower() == name)
    text = ",".join(value.decode("latin-1") for value in values)
    return [entry.strip() for entry in text.split(",") if entry.strip()]
