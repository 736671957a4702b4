"""Slow and broken networks between a client and a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK = 64 * 1024


@dataclass
class Network:
    """A TCP proxy in front of a server, at `url`.

    Data and the end of a connection are delivered `delay` seconds later, in each direction. While
    it is `broken`, nothing is delivered and no connection is closed, as when packets are lost.
    """

    delay: float = 0.0
    broken: bool = False
    url: str = ""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: str = ""

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = urlsplit(self._server)
        theirs, ours = await asyncio.open_connection(address.hostname, address.port)
        try:
            await asyncio.gather(self._pass_on(reader, ours), self._pass_on(theirs, writer))
        finally:
            ours.close()
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - loop.time())
                if self.broken:
                    continue
                if not data:
                    writer.close()
                    return
                writer.write(data)

        delivering = asyncio.create_task(deliver())
        try:
            data = b"more"
            while data:
                data = b""
                with suppress(ConnectionError):
                    data = await reader.read(CHUNK)
                queue.put_nowait((loop.time() + self.delay, data))
            await delivering
        finally:
            delivering.cancel()


@asynccontextmanager
async def network(server: str, *, delay: float = 0.0) -> AsyncIterator[Network]:
    """Run a proxy in front of the server at this URL."""
    between = Network(delay, _server=server)
    listener = await asyncio.start_server(between._accept, "127.0.0.1", 0)
    between.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield between
    finally:
        listener.close()
        for task in between._tasks:
            task.cancel()
        await asyncio.gather(*between._tasks, return_exceptions=True)
