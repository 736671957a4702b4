"""The workers as the launcher sees them: processes that are kept alive, renewed, and ended.

Each holds one end of a lifeline whose other end only the launcher has: it says on it that it is
ready, and leaves when it breaks. Its nursery has that end too, and says how it has ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from quartapp import metrics
from quartapp.log import log
from quartapp.serving import nursery
from quartapp.serving.process import GRACE_SECONDS, READY, first_of
from quartapp.settings import StartError

READY_SECONDS = 30
MAIN = (
    "import socket, sys; from quartapp.serving import nursery; "
    "sys.exit(nursery.main(socket.socket(fileno=int(sys.argv[1]))))"
)
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
HEALTHY_SECONDS = 30
DEATHS_PER_MINUTE, MINUTE = 10, 60.0


class Process:
    """One life of a worker."""

    def __init__(
        self, pid: int, numbers: str, said: asyncio.StreamReader, ours: asyncio.StreamWriter
    ) -> None:
        self._pid = pid
        self._numbers = numbers
        self._ready = asyncio.Event()
        self._ours = ours
        self._life = asyncio.create_task(self._follow(said))

    async def _follow(self, said: asyncio.StreamReader) -> int | None:
        """Until the lifeline breaks. The exit status, if the nursery lived to say it."""
        status = None
        with suppress(ConnectionError):
            async for line in said:
                if line == READY:
                    self._ready.set()
                else:
                    status = int(line)
        self._ours.close()
        metrics.forget(self._pid, self._numbers)
        return status

    async def says_ready(self) -> bool:
        await first_of(self._ready.wait(), self.wait(), seconds=READY_SECONDS)
        return self._ready.is_set()

    def when_over(self, call: Callable[[int | None], None]) -> None:
        """Call this with the exit status when the process has ended."""
        self._life.add_done_callback(lambda life: life.cancelled() or call(life.result()))

    async def wait(self) -> int | None:
        return await asyncio.shield(self._life)

    async def leave(self, haste: asyncio.Event) -> None:
        """Asks it to finish what it does. Kills it after the grace, or at once when in haste."""
        self._signal(signal.SIGTERM)
        await first_of(self.wait(), haste.wait(), seconds=GRACE_SECONDS)
        await self.kill()

    async def kill(self) -> int | None:
        self._signal(signal.SIGKILL)
        return await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        if not self._life.done():
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)


class Nursery:
    """The process that forks workers, as the launcher sees it: quartapp.serving.nursery.

    It has the code as it was when it was imported. One that has died is replaced by a new one when
    the next worker is wanted; those that it has forked live on.
    """

    def __init__(self, control: socket.socket, end: Callable[[], Awaitable[object]]) -> None:
        self._control = control
        self._end = end
        self._turn = asyncio.Lock()

    @classmethod
    def forked(cls) -> Nursery:
        """One that has what this process has. Only while there is neither a loop nor a thread."""
        control, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            control.close()
            os.setsid()
            sys.exit(nursery.main(theirs))
        theirs.close()
        return cls(control, lambda: asyncio.to_thread(os.waitpid, pid, 0))

    @classmethod
    async def started(cls) -> Nursery:
        """One that imports all anew."""
        return cls(*await cls._start())

    @staticmethod
    async def _start() -> tuple[socket.socket, Callable[[], Awaitable[object]]]:
        control, theirs = socket.socketpair()
        with theirs:
            # In a session of its own: a Ctrl-C in the terminal is for the launcher alone.
            process = await asyncio.create_subprocess_exec(
                # By its name alone it would be imported twice: the package imports it, too.
                *[sys.executable, "-c", MAIN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

        async def end() -> None:
            if process.returncode is None:
                # Heard only while it is still importing.
                process.terminate()
            await process.wait()

        return control, end

    async def fork(self, listener: socket.socket, environment: Mapping[str, str]) -> Process | None:
        """A worker, with this added to its environment. None if the nursery cannot."""
        lifeline, theirs = socket.socketpair()
        said, ours = await asyncio.open_connection(sock=lifeline)
        request = json.dumps(environment).encode()
        try:
            with theirs:
                files = [listener.fileno(), theirs.fileno()]
                async with self._turn, asyncio.timeout(READY_SECONDS):
                    try:
                        socket.send_fds(self._control, [request], files)
                    except OSError:  # It has died.
                        await self.close()
                        self._control, self._end = await self._start()
                        socket.send_fds(self._control, [request], files)
                    theirs.close()
                    pid = int(await said.readline())
        except BaseException as error:
            # A worker that comes too late finds its lifeline broken, and leaves.
            ours.close()
            if isinstance(error, OSError | ValueError):
                return None
            raise
        return Process(pid, environment.get(metrics.FOLDER, ""), said, ours)

    async def close(self) -> None:
        """Returns when it has gone, which it does when its workers have. May be called again."""
        if self._control.fileno() >= 0:
            self._control.close()
            await self._end()


class Worker:
    """A place that always has a process."""

    def __init__(
        self,
        index: int,
        nursery: Nursery,
        listener: socket.socket,
        environment: Mapping[str, str],
        haste: asyncio.Event,
        died: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`died` is called with the id of a worker that has ended without leaving the database."""
        self.started = asyncio.Event()
        self.nursery = nursery
        self._index = index
        self._listener = listener
        self._environment = {**environment, "QUARTAPP_WORKER": str(index)}
        self._haste = haste
        self._died = died
        self._again = asyncio.Event()
        self._current: Process | None = None
        self._successor: Process | None = None
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
            await self.dismiss_successor()
            if self._current is not None:
                await self._current.leave(self._haste)
            await asyncio.gather(*self._leaving)

    def _stop_listening(self) -> None:
        """Until the next process listens, the kernel leaves connections to the other workers."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    async def _fork(self, nursery: Nursery) -> Process | None:
        worker_id = secrets.token_hex(8)
        environment = {**self._environment, "QUARTAPP_WORKER_ID": worker_id}
        process = await nursery.fork(self._listener, environment)
        if process is not None:
            process.when_over(lambda status: self._died(worker_id) if status != 0 else None)
        return process

    async def _live(self) -> int | None:
        """One life after another, for as long as each is replaced before it ends."""
        process = self._current = await self._fork(self.nursery)
        if process is None:
            return None
        if await process.says_ready():
            self.started.set()
        else:
            await process.kill()
        while True:
            status = await process.wait()
            successor = self._current
            if successor is None or successor is process:
                self._current = None
                return status
            process = successor

    async def start_successor(self, nursery: Nursery) -> bool:
        """Start another process beside the current one, and return whether it is ready.

        Both accept until `hand_over`, so nobody waits. Where the current process has died, none is
        started: then `hand_over` has the next one come from the given nursery.
        """
        if self._current is None:
            return True
        self._successor = await self._fork(nursery)
        if self._successor is None:
            return False
        return await self._successor.says_ready()

    async def dismiss_successor(self) -> None:
        """Kill what `start_successor` has started. The current process goes on."""
        if self._successor is not None:
            await self._successor.kill()
            self._successor = None

    async def hand_over(self, nursery: Nursery) -> None:
        """Have the current process leave, and return when it has gone.

        From now on the given nursery forks the processes that follow.
        """
        self.nursery = nursery
        old = self._current
        if old is None or self._successor is None:
            await self.dismiss_successor()
            self._again.set()
            if old is None:
                return
        else:
            self._current, self._successor = self._successor, None
        leaving = asyncio.create_task(old.leave(self._haste))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        await asyncio.shield(leaving)
