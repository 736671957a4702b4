"""The sockets on which workers accept. The launcher holds them, whatever becomes of a worker."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from quartapp.settings import Settings, StartError

BACKLOG = 2048
# A client that takes nothing in for so long is cut off by the kernel, with all that waits for it.
UNACKNOWLEDGED_MS = 30_000


@contextmanager
def listening(
    settings: Settings, host: str, port: int, count: int
) -> Iterator[list[socket.socket]]:
    """A socket for each worker on the same port: so the kernel spreads connections evenly."""
    family, ip = _address(settings, host)
    with ExitStack() as stack:
        try:
            # Sockets that share a port would share it with another server's too. And one whose port
            # the kernel chose would get another port when it stops listening and begins again.
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
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # What is accepted inherits it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        listener.bind((ip, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
