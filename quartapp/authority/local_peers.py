"""What the workers of one server say to each other, with no database in between.

The folder that the launcher made for them has a socket of each, by the worker's id. A word that
cannot be said there is said by the database, which reaches the workers of other hosts too: so
nothing hangs on this but time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from quartapp.log import log

AT_ONCE = 64
MESSAGE_BYTES = 1024


class Neighbours:
    """This worker's socket. `hear` is called with what the others say, on the event loop."""

    def __init__(self, folder: Path | None, worker_id: str, hear: Callable[[bytes], None]) -> None:
        self._folder = folder
        self._worker_id = worker_id
        self._hear = hear
        self._socket: socket.socket | None = None

    async def start(self) -> None:
        """Without a folder there are no others."""
        if self._folder is None:
            return
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            ours.bind(str(self._folder / self._worker_id))
        except OSError as error:
            # Above all where the folder's path is longer than a socket's may be.
            ours.close()
            log.warning("neighbours_not_heard", detail=str(error))
            return
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._read)

    async def stop(self) -> None:
        """From now on they find nobody here."""
        if self._socket is not None and self._folder is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            (self._folder / self._worker_id).unlink(missing_ok=True)

    def tell(self, worker_id: str, message: bytes) -> bool:
        """Whether it was said: not to somebody who is elsewhere, gone, or has no room for it."""
        if self._socket is None or self._folder is None:
            return False
        try:
            self._socket.sendto(message, str(self._folder / worker_id))
        except OSError:
            return False
        return True

    def _read(self) -> None:
        assert self._socket is not None
        for _ in range(AT_ONCE):
            try:
                message = self._socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return
            self._hear(message)
