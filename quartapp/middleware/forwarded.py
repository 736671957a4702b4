"""Whom a request comes from when it comes through proxies of ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# In the scope of a request that came through one of our proxies.
FORWARDED = "quartapp.forwarded"


class Proxied:
    """ASGI middleware that puts the client's address and scheme in the place of the proxy's.

    X-Forwarded-For and X-Forwarded-Proto are read only when the peer is one of `trusted`, from the
    right: every proxy adds at the end, so what a client wrote itself stands left of the truth. The
    client is the last entry that is not one of our proxies. No other header is believed, Host and
    X-Forwarded-Host least of all.
    """

    def __init__(self, app: Any, trusted: Sequence[Network]) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and scope.get("client"):
            peer = parse(scope["client"][0])
            if peer is not None and self._is_ours(peer):
                scope = {**scope, **self._seen_from_outside(scope, peer)}
        await self._app(scope, receive, send)

    def _seen_from_outside(self, scope: dict[str, Any], peer: Address) -> dict[str, Any]:
        client = peer
        for entry in reversed(_entries(scope, b"x-forwarded-for")):
            found = parse(entry)
            if found is None:
                break
            client = found
            if not self._is_ours(client):
                break
        seen: dict[str, Any] = {"client": (str(client), 0), FORWARDED: True}
        proto = next(reversed(_entries(scope, b"x-forwarded-proto")), "").lower()
        if proto in ("http", "https"):
            secure = proto == "https"
            socket = scope["type"] == "websocket"
            seen["scheme"] = ("wss" if secure else "ws") if socket else proto
        return seen

    def _is_ours(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def parse(text: str) -> Address | None:
    """An address as proxies write it, with or without a port; None if it is none."""
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
    values: Iterable[bytes] = (value for key, value in scope["headers"] if key.lower() == name)
    text = ",".join(value.decode("latin-1") for value in values)
    return [entry.strip() for entry in text.split(",") if entry.strip()]
