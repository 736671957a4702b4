"""The launcher's side of the workers: their processes are started, replaced and ended here.

Between the launcher and each worker process there is a socket pair, its lifeline. The worker writes
to its end that it is ready, and exits when the launcher's end is closed. The fork server holds the
worker's end open too, and writes the worker's exit status to it.
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
from typing import Any

from quartapp import metrics
from quartapp.log import log
from quartapp.serving.lifeline import GRACE_SECONDS, READY, TASK, first_of
from quartapp.settings import StartError

# A worker that is not ready after so long is killed.
READY_SECONDS = 30
MAIN = (
    "import socket, sys; from quartapp.serving import fork_server; "
    "sys.exit(fork_server.main(socket.socket(fileno=int(sys.argv[1]))))"
)
# The pause before a worker process is replaced doubles each time, until one has run for
# HEALTHY_SECONDS. A worker whose process exits more than EXITS_PER_MINUTE times is not replaced for
# the rest of the minute.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
HEALTHY_SECONDS = 30
TASK_FAILED = "a process that prepares the database failed, it says why above"
EXITS_PER_MINUTE, MINUTE = 10, 60.0


class WorkerProcess:
    """A running process of a worker. `lifeline` is the launcher's end of its lifeline."""

    def __init__(
        self,
        pid: int,
        metrics_folder: str,
        lifeline: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._pid = pid
        self._metrics_folder = metrics_folder
        self._ready = asyncio.Event()
        self._exit = asyncio.create_task(self._follow(*lifeline))

    async def _follow(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> int | None:
        """Read the lifeline until it is closed at the other end, which is when the process exits.

        Sets `_ready` when the process writes READY. At the end, closes the lifeline and removes the
        gauges of the process, such as its open sockets, from the metrics. Returns the exit status,
        or None if the fork server was killed before it wrote one.
        """
        status = None
        with suppress(ConnectionError):
            async for line in reader:
                if line == READY:
                    self._ready.set()
                else:
                    status = int(line)
        writer.close()
        metrics.remove_dead_worker(self._pid, self._metrics_folder)
        return status

    async def wait_until_ready(self) -> bool:
        """Return True once the process serves, False if it exits first or takes READY_SECONDS."""
        await first_of(self._ready.wait(), self.wait(), seconds=READY_SECONDS)
        return self._ready.is_set()

    def on_exit(self, call: Callable[[int | None], None]) -> None:
        """Call `call` with the exit status, as `wait` returns it, once the process has exited."""
        self._exit.add_done_callback(lambda done: done.cancelled() or call(done.result()))

    async def wait(self) -> int | None:
        """Wait until the process has exited, and return its exit status.

        The status is negative for a signal, and None if the fork server was killed.
        """
        return await asyncio.shield(self._exit)

    async def stop(self, kill_now: asyncio.Event) -> None:
        """Send SIGTERM and wait until the process has exited.

        Sends SIGKILL after GRACE_SECONDS, or as soon as `kill_now` is set.
        """
        self._signal(signal.SIGTERM)
        await first_of(self.wait(), kill_now.wait(), seconds=GRACE_SECONDS)
        await self.kill()

    async def kill(self) -> int | None:
        """Send SIGKILL, unless the process has exited, wait for its exit and return its exit
        status."""
        self._signal(signal.SIGKILL)
        return await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        """Send the signal, unless the process has exited."""
        if not self._exit.done():
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)


class ForkServerClient:
    """The launcher's connection to a fork server (`quartapp.serving.fork_server`).

    The workers of one fork server run the code as it was when that process imported it. A fork
    server that was killed is started again for the next worker; workers that it forked go on.
    """

    def __init__(self, control: socket.socket, wait: Callable[[], Awaitable[object]]) -> None:
        """`control` is the launcher's end of the control socket. `wait()` returns when the fork
        server's process has exited."""
        self._control = control
        self._wait = wait
        self._lock = asyncio.Lock()

    @classmethod
    def fork_here(cls) -> ForkServerClient:
        """Fork this process to be the fork server, and return the connection to it.

        In the child, which ignores SIGINT and SIGHUP and has a session of its own, it runs the fork
        server and never returns. Call it before an event loop or a thread is started.
        """
        control, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            control.close()
            os.setsid()
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            # It imports the application, which the launcher does not need.
            from quartapp.serving import fork_server

            sys.exit(fork_server.main(theirs))
        theirs.close()

        async def wait() -> None:
            # Has an effect only while it still imports: afterwards it ignores SIGTERM.
            os.kill(pid, signal.SIGTERM)
            await asyncio.to_thread(os.waitpid, pid, 0)

        return cls(control, wait)

    @classmethod
    async def start(cls) -> ForkServerClient:
        """Start a fork server in a new Python interpreter, and return the connection to it."""
        return cls(*await cls._start_process())

    @staticmethod
    async def _start_process() -> tuple[socket.socket, Callable[[], Awaitable[object]]]:
        """Start a fork server in a new interpreter, in a session of its own. Return our end of the
        control socket, and a function that waits for its exit (and sends SIGTERM first, which ends
        it only if it is still importing)."""
        control, theirs = socket.socketpair()
        with theirs:
            # In a session of its own, so that Ctrl-C in a terminal signals the launcher alone.
            process = await asyncio.create_subprocess_exec(
                # With `-m`, the module would be imported twice: as `__main__` and by its name.
                *[sys.executable, "-c", MAIN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

        async def wait() -> None:
            if process.returncode is None:
                # Has an effect only while it still imports: afterwards it ignores SIGTERM.
                process.terminate()
            await process.wait()

        return control, wait

    async def fork(
        self, listener: socket.socket, environment: Mapping[str, str]
    ) -> WorkerProcess | None:
        """Fork a worker that serves `listener`, with `environment` added to its environment.

        Starts another fork server if this one was killed. Returns None if there is no worker after
        READY_SECONDS, or if the fork server fails or a lifeline cannot be opened.
        """
        forked = await self._request(environment, listener)
        if forked is None:
            return None
        pid, reader, writer = forked
        return WorkerProcess(pid, environment.get(metrics.FOLDER, ""), (reader, writer))

    async def run_task(self, task: str, environment: Mapping[str, str]) -> dict[str, Any]:
        """Run a task of `quartapp.serving.tasks` in a process of its own, and return its result.

        `environment` is added to the environment of the process. If cancelled, kills the process.
        Raises StartError with the reason of the task, or if the process fails.
        """
        forked = await self._request({**environment, TASK: task}, None)
        if forked is None:
            raise StartError(TASK_FAILED)
        pid, reader, writer = forked
        try:
            outcome = json.loads(await reader.readline())
        except (ConnectionError, ValueError):
            raise StartError(TASK_FAILED) from None
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise
        finally:
            writer.close()
        if not isinstance(outcome, dict):
            # The process failed, and this is its exit status.
            raise StartError(TASK_FAILED)
        if "reason" in outcome:
            raise StartError(outcome["reason"])
        return outcome

    async def _request(
        self, environment: Mapping[str, str], listener: socket.socket | None
    ) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Have a process forked, and return its process id and our end of its lifeline.

        Starts another fork server if this one was killed. Returns None if there is no process after
        READY_SECONDS, or if the fork server fails or a lifeline cannot be opened.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # Too many files are open.
            return None
        reader, writer = await asyncio.open_connection(sock=ours)
        request = json.dumps(environment).encode()
        try:
            with theirs:
                files = [each.fileno() for each in (theirs, listener) if each is not None]
                async with self._lock, asyncio.timeout(READY_SECONDS):
                    try:
                        socket.send_fds(self._control, [request], files)
                    except OSError:  # The fork server was killed.
                        await self.close()
                        self._control, self._wait = await self._start_process()
                        socket.send_fds(self._control, [request], files)
                    theirs.close()
                    pid = int(await reader.readline())
        except BaseException as error:
            # A process that is forked too late finds its lifeline closed, and exits.
            writer.close()
            if isinstance(error, OSError | ValueError):
                return None
            raise
        return pid, reader, writer

    async def close(self) -> None:
        """Close the control socket, and wait until the fork server and its workers have exited.

        It does not stop the workers. A fork server that still imports the application, and so has
        no workers, is ended with SIGTERM. Does nothing when called again.
        """
        if self._control.fileno() >= 0:
            self._control.close()
            await self._wait()


class WorkerSlot:
    """Keeps one worker process running: a process that exits is replaced by another.

    All processes of a slot accept on the same listening socket. `fork_server` forks the next one.
    `started` is set when the first process serves.
    """

    def __init__(
        self,
        index: int,
        fork_server: ForkServerClient,
        listener: socket.socket,
        environment: Mapping[str, str],
        kill_now: asyncio.Event,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Once `kill_now` is set, a process that was told to exit is killed.

        `on_failure` is called with the worker id of each process that exits with another status
        than 0, and so may not have deleted its heartbeat.
        """
        self.started = asyncio.Event()
        self.fork_server = fork_server
        self._index = index
        self._listener = listener
        self._environment = {**environment, "QUARTAPP_WORKER": str(index)}
        self._kill_now = kill_now
        self._on_failure = on_failure
        self._retry_now = asyncio.Event()
        self._current: WorkerProcess | None = None
        self._successor: WorkerProcess | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    async def keep_alive(self) -> None:
        """Run a process, and replace it each time it exits. Runs until cancelled.

        Each exit is logged as `worker_died`. The pauses before a replacement grow as the constants
        above say. After too many exits, logs `worker_paused` and pauses for the rest of a minute,
        in which the kernel gives connections to the other workers. When cancelled, closes the
        listening socket, stops the processes and waits for them. Raises StartError if the first
        process does not get ready.
        """
        loop = asyncio.get_running_loop()
        exits: deque[float] = deque(maxlen=EXITS_PER_MINUTE + 1)
        pause = SHORTEST_PAUSE
        try:
            while True:
                started_at = loop.time()
                status = await self._run_process()
                if not self.started.is_set():
                    raise StartError("a worker could not start, it says why above")
                exits.append(loop.time())
                log.warning("worker_died", worker=self._index, status=status)
                if exits[-1] - started_at > HEALTHY_SECONDS:
                    pause = SHORTEST_PAUSE
                left = exits[0] + MINUTE - exits[-1]
                if len(exits) > EXITS_PER_MINUTE and left > 0:
                    log.error("worker_paused", worker=self._index, seconds=round(left))
                    self._stop_listening()
                    exits.clear()
                    pause = left
                self._retry_now.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._retry_now.wait()
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            # Closed first, so that the kernel queues no connection for a worker that exits.
            self._listener.close()
            await self.kill_successor()
            if self._current is not None:
                await self._current.stop(self._kill_now)
            await asyncio.gather(*self._stopping)

    def _stop_listening(self) -> None:
        """Have the kernel give connections to the other workers, until a process listens again."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    async def _fork(self, fork_server: ForkServerClient) -> WorkerProcess | None:
        """Fork a process of this slot with a new worker id, and have `on_failure` called if it
        exits with another status than 0. Returns None if it could not be forked."""
        worker_id = secrets.token_hex(8)
        environment = {**self._environment, "QUARTAPP_WORKER_ID": worker_id}
        process = await fork_server.fork(self._listener, environment)
        if process is not None:
            process.on_exit(lambda status: self._on_failure(worker_id) if status != 0 else None)
        return process

    async def _run_process(self) -> int | None:
        """Run a process until it exits, or the successor that `hand_over` has put in its place.

        Sets `started` once it serves, and kills it if it does not get ready in time. Returns the
        exit status; None also when no process could be forked.
        """
        process = self._current = await self._fork(self.fork_server)
        if process is None:
            return None
        if await process.wait_until_ready():
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

    async def start_successor(self, fork_server: ForkServerClient) -> bool:
        """Start another process beside the current one, wait until it is ready, and return whether
        it is.

        Both accept connections until `hand_over`, so that none has to wait. A process that is not
        ready after READY_SECONDS keeps running: call `kill_successor`. If there is no current
        process, starts none and returns True.
        """
        if self._current is None:
            return True
        self._successor = await self._fork(fork_server)
        if self._successor is None:
            return False
        return await self._successor.wait_until_ready()

    async def kill_successor(self) -> None:
        """Kill the process that `start_successor` started, if any. The current one goes on."""
        if self._successor is not None:
            await self._successor.kill()
            self._successor = None

    async def hand_over(self, fork_server: ForkServerClient) -> None:
        """Replace the current process by its successor, and wait until the old one has exited.

        From now on `fork_server` forks the processes of this slot. If there is no successor, the
        current process is stopped and `keep_alive` starts another. If there is no current process,
        kills the successor, if any, and `keep_alive` starts another process at once, without the
        rest of its pause.
        """
        self.fork_server = fork_server
        old = self._current
        if old is None or self._successor is None:
            await self.kill_successor()
            self._retry_now.set()
            if old is None:
                return
        else:
            self._current, self._successor = self._successor, None
        stopping = asyncio.create_task(old.stop(self._kill_now))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        await asyncio.shield(stopping)
