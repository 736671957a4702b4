"""Messages between the workers of one server, through Unix sockets instead of the database.

The launcher creates a folder in which each worker has a datagram socket, named by the worker's id.
This is only faster: a message that cannot be sent here goes through the database, which also
reaches workers on other hosts.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from quartapp.log import log

MESSAGES_PER_WAKEUP = 64
MAX_MESSAGE_BYTES = 1024


class LocalPeers:
    """This worker's socket. `on_message` is called on the event loop with each received message.

    Without a folder, messages can be neither sent nor received.
    """

    def __init__(
        self, folder: Path | None, worker_id: str, on_message: Callable[[bytes], None]
    ) -> None:
        self._folder = folder
        self._worker_id = worker_id
        self._on_message = on_message
        self._socket: socket.socket | None = None

    async def start(self) -> None:
        """Open this worker's socket in the folder and listen on it. Does nothing without a folder.

        A failure is logged as `neighbours_not_heard`; messages are then neither sent nor received.
        """
        if self._folder is None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(str(self._folder / self._worker_id))
        except OSError as error:
            # Mostly because the folder's path is longer than a socket's path may be.
            listener.close()
            log.warning("neighbours_not_heard", detail=str(error))
            return
        self._socket = listener
        asyncio.get_running_loop().add_reader(listener, self._read)

    async def stop(self) -> None:
        """Close the socket and remove its file: `send` to this worker returns False from now on.

        May be called again, and without `start`.
        """
        if self._socket is not None and self._folder is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            (self._folder / self._worker_id).unlink(missing_ok=True)

    def send(self, worker_id: str, message: bytes) -> bool:
        """Send the message to the worker and return whether that worked.

        It did not if this worker has no socket, if the other one is on another host or gone, or if
        its socket's buffer is full. Raises no error and does not wait.
        """
        if self._socket is None or self._folder is None:
            return False
        try:
            self._socket.sendto(message, str(self._folder / worker_id))
        except OSError:
            return False
        return True

    def _read(self) -> None:
        """Pass up to MESSAGES_PER_WAKEUP waiting messages to `on_message`."""
        assert self._socket is not None
        for _ in range(MESSAGES_PER_WAKEUP):
            try:
                message = self._socket.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            self._on_message(message)
