"""The fork server: a process that has imported the application and forks the workers.

Starting an interpreter and importing takes a second and more, a fork some milliseconds, and workers
share the memory of what was imported before. The fork server runs no event loop and no threads,
because forking with them is not safe.

The launcher forks the first fork server, which imports the application while the launcher starts
the database. A renewal (SIGHUP) starts another one in a new interpreter, so that its workers have
the code that is installed then.

The launcher sends requests on a Unix socket, the control socket. Each request is a JSON object of
variables for the environment of one worker, and carries two open files: the worker's end of its
lifeline, and the listening socket. On the lifeline the worker writes its process id; after it has
exited, the fork server writes its exit status. A request without a listening socket forks a process
that runs a task (see `tasks`), named by the variable QUARTAPP_TASK, instead of a worker.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path

from quartapp import application, auth, validation
from quartapp.security import breached_passwords
from quartapp.serving import hypercorn_latency, hypercorn_security, tasks, worker_process
from quartapp.serving.lifeline import TASK

# Workers import these when they use them, and would wait for the import.
PRELOADED = (application, breached_passwords, hypercorn_latency, hypercorn_security)

# A supervisor may send these to every process. They are for the launcher alone, which then ends
# the workers and the fork server.
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REQUEST_BYTES = 64 * 1024


class ForkServer:
    """Forks a process for each request on the control socket, and reports how processes exit."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # A signal writes a byte to the second, so that `select` returns.
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._lifelines: dict[int, socket.socket] = {}
        self._preloaded = False

    def run(self) -> tuple[int | None, socket.socket] | None:
        """Serve requests. Returns in this process and in each forked process.

        In a forked process: the file descriptor of its listening socket, None for a task, and its
        end of the lifeline, with the request's variables added to `os.environ`. In the fork server:
        None, once the launcher has closed the control socket and all these processes have exited.
        Raises OSError if the system cannot fork.
        """
        self._handle_signals()
        watched = [self._wakeup, self._control]
        while self._control in watched or self._lifelines:
            for ready in select.select(watched, [], [])[0]:
                if ready is self._wakeup:
                    self._wakeup.recv(REQUEST_BYTES)
                    self._reap()
                    continue
                request, files = self._receive_request()
                if not request:
                    watched.remove(self._control)
                    continue
                ours, listener = socket.socket(fileno=files[0]), next(iter(files[1:]), None)
                if listener is not None:
                    self._preload()
                if self._fork(ours, listener):
                    os.environ.update(json.loads(request))
                    return listener, ours
                # While the first task runs, if there is one, before the first worker.
                self._preload()
        return None

    def _receive_request(self) -> tuple[bytes, list[int]]:
        """Wait for the next request, and return it with its files; no bytes and no files when the
        launcher has closed the control socket."""
        try:
            return socket.recv_fds(self._control, REQUEST_BYTES, 2)[:2]
        except ConnectionResetError:  # The launcher was killed before it had read all.
            return b"", []

    def _handle_signals(self) -> None:
        """Ignore the signals in IGNORED, and have SIGCHLD wake up `select`."""
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        for end in (self._wakeup, self._wakeup_writer):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno())

    def _preload(self) -> None:
        """Load the user agent parser and the library that validates email addresses, and have the
        garbage collector ignore all objects that exist now.

        So workers share the memory that is in use now. Does nothing when called again.
        """
        if self._preloaded:
            return
        self._preloaded = True
        auth.preload_user_agent_parser()
        validation.preload()
        # The garbage collector writes to each object that it looks at, and a page of memory that is
        # written to is no longer shared.
        gc.collect()
        gc.freeze()

    def _fork(self, lifeline: socket.socket, listener: int | None) -> bool:
        """Fork a process, and return True in it, False in the fork server.

        The process resets what the fork server has set up (`_reset`), keeps the listening socket
        and its lifeline open, and writes its process id to the lifeline. The fork server closes its
        copy of the listening socket, if there is one, and keeps the lifeline until the process has
        exited (`_reap`). Raises OSError if the system cannot fork.
        """
        process = os.fork()
        if not process:
            self._reset()
            # The process writes it itself, so that it comes before anything else it writes.
            self._write(lifeline, os.getpid())
            return True
        if listener is not None:
            os.close(listener)
        self._lifelines[process] = lifeline
        return False

    def _reset(self) -> None:
        """In a forked process: give SIGCHLD and the signals in IGNORED their default action, remove
        the wakeup file descriptor, and close the control socket, both wakeup sockets and the
        lifelines of the other processes.

        A process that held the lifeline of another open would hide that the other has exited.
        """
        signal.set_wakeup_fd(-1)
        for number in (*IGNORED, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for end in (self._control, self._wakeup, self._wakeup_writer, *self._lifelines.values()):
            end.close()

    def _reap(self) -> None:
        """Collect the processes that have exited, without waiting for the others. Write the exit
        status of each to its lifeline, negative for a signal, then close and forget the lifeline.
        """
        while self._lifelines:
            worker, status = os.waitpid(-1, os.WNOHANG)
            if not worker:
                break
            with self._lifelines.pop(worker) as lifeline:
                self._write(lifeline, os.waitstatus_to_exitcode(status))

    @staticmethod
    def _write(lifeline: socket.socket, number: int) -> None:
        """Write the number and a line feed to the lifeline. Errors are ignored."""
        # The launcher may have gone.
        with suppress(OSError):
            lifeline.sendall(b"%d\n" % number)


def main(control: socket.socket) -> int:
    """Run a fork server, and in each process that it forks a task or a worker, which is named
    worker-N for `ps`. Returns the exit status of this process: 0 for the fork server. Raises
    OSError if the system cannot fork."""
    forked = ForkServer(control).run()
    if forked is None:
        return 0
    listener, ours = forked
    if listener is None:
        return tasks.run(os.environ.pop(TASK), ours)
    with suppress(OSError):
        # The name that `ps` and `top` show. Only Linux has this file.
        Path("/proc/self/comm").write_text(f"worker-{os.environ['QUARTAPP_WORKER']}")
    return worker_process.run(listener, ours)
