"""The workers as the launcher sees them: processes that are kept alive, renewed, and ended.

Each holds one end of a lifeline whose other end only the launcher has: it says on it that it is
ready, and leaves when it breaks.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections import deque
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from quartapp import metrics
from quartapp.log import log
from quartapp.settings import StartError

READY = b"ready"
READY_SECONDS = 30
GRACE_SECONDS = 10
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
HEALTHY_SECONDS = 30
DEATHS_PER_MINUTE, MINUTE = 10, 60.0


class Process:
    """One life of a worker."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: socket.socket, folder: str):
        self._process = process
        self._lifeline = lifeline
        self._folder = folder

    @classmethod
    async def start(cls, listener: socket.socket, environment: Mapping[str, str]) -> Process:
        lifeline, theirs = socket.socketpair()
        lifeline.setblocking(False)
        with theirs:
            # In a session of its own: a Ctrl-C in the terminal is for the launcher alone.
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "quartapp.serving.process"],
                *[str(listener.fileno()), str(theirs.fileno())],
                pass_fds=[listener.fileno(), theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        return cls(process, lifeline, environment.get(metrics.FOLDER, ""))

    async def says_ready(self) -> bool:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(READY_SECONDS):
                loop = asyncio.get_running_loop()
                return await loop.sock_recv(self._lifeline, len(READY)) == READY
        return False

    async def wait(self) -> int:
        status = await self._process.wait()
        self._lifeline.close()
        metrics.forget(self._process.pid, self._folder)
        return status

    async def leave(self, haste: asyncio.Event) -> None:
        """Asks it to finish what it does. Kills it after the grace, or at once when in haste."""
        self._signal(signal.SIGTERM)
        await first_of(self._process.wait(), haste.wait(), seconds=GRACE_SECONDS)
        await self.kill()

    async def kill(self) -> int:
        self._signal(signal.SIGKILL)
        return await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


class Worker:
    """A place that always has a process."""

    def __init__(
        self,
        index: int,
        listener: socket.socket,
        environment: Mapping[str, str],
        haste: asyncio.Event,
    ) -> None:
        self.started = asyncio.Event()
        self._index = index
        self._listener = listener
        self._environment = {**environment, "QUARTAPP_WORKER": str(index)}
        self._haste = haste
        self._again = asyncio.Event()
        self._current: Process | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def keep_alive(self) -> None:
        """Runs a process, and another in its place when it dies; ends it when cancelled.

        Those that die again and again are given up for the rest of the minute. Raises StartError
        when the first cannot start.
        """
        loop = asyncio.get_running_loop()
        deaths: deque[float] = deque(maxlen=DEATHS_PER_MINUTE + 1)
        pause = SHORTEST_PAUSE
        try:
            while True:
                born = loop.time()
                status = await self._live()
                if not self.started.is_set():
                    raise StartError("a worker could not start, it says why above")
                deaths.append(loop.time())
                log.warning("worker_died", worker=self._index, status=status)
                if deaths[-1] - born > HEALTHY_SECONDS:
                    pause = SHORTEST_PAUSE
                left = deaths[0] + MINUTE - deaths[-1]
                if len(deaths) > DEATHS_PER_MINUTE and left > 0:
                    log.error("worker_paused", worker=self._index, seconds=round(left))
                    self._stop_listening()
                    deaths.clear()
                    pause = left
                self._again.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._again.wait()
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            # Closed first, so that the kernel queues nobody for a worker that leaves.
            self._listener.close()
            if self._current is not None:
                await self._current.leave(self._haste)
            await asyncio.gather(*self._leaving)

    def _stop_listening(self) -> None:
        """Until the next process listens, the kernel leaves connections to the other workers."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    async def _live(self) -> int:
        """One life after another, for as long as each is replaced before it ends."""
        process = await Process.start(self._listener, self._environment)
        self._current = process
        if await process.says_ready():
            self.started.set()
        else:
            await process.kill()
        while True:
            status = await process.wait()
            successor = self._current
            if successor is process:
                self._current = None
                return status
            process = successor

    async def renew(self) -> bool:
        """Starts another process beside the old one, which leaves when the new one is ready.

        Both accept meanwhile, so nobody waits. False if the new one could not start: then the old
        one stays. Where the old one has died, the next one comes at once.
        """
        old = self._current
        if old is None:
            self._again.set()
            return True
        new = await Process.start(self._listener, self._environment)
        try:
            ready = await new.says_ready()
        except asyncio.CancelledError:
            await new.kill()
            raise
        if not ready or self._current is not old:
            await new.kill()
            return False
        self._current = new
        leaving = asyncio.create_task(old.leave(self._haste))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        await asyncio.shield(leaving)
        return True


async def first_of(*waits: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Waits until one of them is done, and forgets the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
