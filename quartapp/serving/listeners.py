"""The listening sockets of the workers.

The launcher keeps them open, so that connections wait in the kernel's queue while a worker is
replaced.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from quartapp.settings import Settings, StartError

BACKLOG = 2048
# The kernel resets a connection whose client has acknowledged nothing for so long, and frees what
# was queued for it.
UNACKNOWLEDGED_MS = 30_000


@contextmanager
def listening(
    settings: Settings, host: str, port: int, count: int
) -> Iterator[list[socket.socket]]:
    """Yield `count` listening sockets on one port, among which the kernel spreads connections.

    They are closed at the end. With port 0, the kernel chooses a free port. Raises StartError if
    the host cannot be resolved, if it is not a loopback address in development, or if the port is
    in use or cannot be bound.
    """
    family, ip = _address(settings, host)
    with ExitStack() as stack:
        try:
            # A socket that does not share its port fails if another server has the port. It also
            # chooses the port, because a port that the kernel chose for one of the others would
            # change when that one stops listening and starts again.
            with _listen(family, ip, port, shared=False) as alone:
                port = alone.getsockname()[1]
            listeners = [
                stack.enter_context(_listen(family, ip, port, shared=True)) for _ in range(count)
            ]
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"port {port} on {ip} is in use: choose another --port") from None
            raise StartError(f"cannot listen on {ip} port {port}: {error.strerror}") from None
        yield listeners


def _address(settings: Settings, host: str) -> tuple[socket.AddressFamily, str]:
    """Return the family and IP address to listen on, IPv4 if the host has one.

    Raises StartError if the host has no address, or in development one that other machines reach.
    """
    try:
        found = socket.getaddrinfo(
            host or None, None, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartError(f"cannot resolve the host {host}: {error.strerror}") from None
    addresses = [(family, str(address[0])) for family, _, _, _, address in found]
    if not settings.production and not all(
        ipaddress.ip_address(ip).is_loopback for _, ip in addresses
    ):
        raise StartError(
            f"development serves this machine alone and not {host or 'every address'}: "
            "use --host 127.0.0.1, or set QUARTAPP_ENV=production"
        )
    return min(addresses, key=lambda each: each[0] != socket.AF_INET)


def _listen(family: socket.AddressFamily, ip: str, port: int, *, shared: bool) -> socket.socket:
    """Return a listening socket. With `shared`, others can listen on the same port. Raises
    OSError."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Accepted connections inherit it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        listener.bind((ip, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
