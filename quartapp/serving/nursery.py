"""The process in which workers are born: it has imported all that they need, and forks them.

To start an interpreter and to import takes a second and more, a fork some milliseconds, and what
was imported is in memory once. The nursery has no loop and no threads: with them no fork is safe.

The launcher forks the first. Those that follow, which a renewal wants for the sake of new code, are
started by a new interpreter, with a socket of the launcher for its CONTROL. Each request on
that is what to add to the environment of one worker, and comes with two open files: its listener
and its end of its lifeline, on which it says its process id, and the nursery in the end its status.
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

from quartapp import auth
from quartapp.serving import process

# What ends a server is told to its launcher. A supervisor may tell each of its processes.
NOT_FOR_IT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REQUEST_BYTES = 64 * 1024


class Nursery:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._bell, self._rope = socket.socketpair()
        self._lifelines: dict[int, socket.socket] = {}

    def tend(self) -> tuple[int, socket.socket] | None:
        """Returns in each worker that is born, with its two files; in the nursery itself None, when
        the launcher has let go of it and its workers have gone."""
        self._settle_in()
        waited_for = [self._bell, self._control]
        while self._control in waited_for or self._lifelines:
            for rung in select.select(waited_for, [], [])[0]:
                if rung is self._bell:
                    self._bell.recv(REQUEST_BYTES)
                    self._bury()
                    continue
                request, files = self._requested()
                if not request:
                    waited_for.remove(self._control)
                elif self._bear(listener := files[0], lifeline := socket.socket(fileno=files[1])):
                    os.environ.update(json.loads(request))
                    return listener, lifeline
        return None

    def _requested(self) -> tuple[bytes, list[int]]:
        try:
            return socket.recv_fds(self._control, REQUEST_BYTES, 2)[:2]
        except ConnectionResetError:  # The launcher was killed before it had read all.
            return b"", []

    def _settle_in(self) -> None:
        for number in NOT_FOR_IT:
            signal.signal(number, signal.SIG_IGN)
        for end in (self._bell, self._rope):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._rope.fileno())
        auth.preload()
        # The collector would write to each object that workers share, and so part them.
        gc.collect()
        gc.freeze()

    def _bear(self, listener: int, lifeline: socket.socket) -> bool:
        """Whether this is the worker."""
        worker = os.fork()
        if not worker:
            self._forget()
            # Said by itself, so that whatever else it says comes after.
            self._say(lifeline, os.getpid())
            return True
        os.close(listener)
        self._lifelines[worker] = lifeline
        return False

    def _forget(self) -> None:
        """What a worker must not have from its nursery: above all, the lifelines of others."""
        signal.set_wakeup_fd(-1)
        for number in (*NOT_FOR_IT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for end in (self._control, self._bell, self._rope, *self._lifelines.values()):
            end.close()

    def _bury(self) -> None:
        while self._lifelines:
            worker, status = os.waitpid(-1, os.WNOHANG)
            if not worker:
                break
            with self._lifelines.pop(worker) as lifeline:
                self._say(lifeline, os.waitstatus_to_exitcode(status))

    @staticmethod
    def _say(lifeline: socket.socket, number: int) -> None:
        # Nobody may listen any more.
        with suppress(OSError):
            lifeline.sendall(b"%d\n" % number)


def main(control: socket.socket) -> int:
    """Returns the exit status, in the nursery and in each worker that it has forked."""
    born = Nursery(control).tend()
    if born is None:
        return 0
    with suppress(OSError):
        # What `ps` and `top` call it, where there is such a file.
        Path("/proc/self/comm").write_text(f"worker-{os.environ['QUARTAPP_WORKER']}")
    return process.run(*born)
