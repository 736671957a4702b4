"""How hard a password is to guess, by zxcvbn, in a process of its own.

zxcvbn holds the interpreter's lock while it works, so in a thread it would stop the event loop all
the same. Its time depends on the password: a few milliseconds for most, a tenth of a second for the
costliest of the length that is looked at. See docs/adr/0070.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quartapp.log import log
from quartapp.security.passwords import Busy

# The time that zxcvbn takes grows with the square of the length and the number of symbols that it
# knows as letters ("4@8({"). Forty characters decide whether a password is strong.
SCORED_CHARACTERS = 40
MAX_WAITING = 32
# For a process that hangs. At its low priority, on a machine that is busy, it takes seconds.
TIMEOUT_SECONDS = 10.0
_PROGRAM = str(Path(__file__).with_name("password_scoring_process.py"))


@dataclass(frozen=True, slots=True)
class Score:
    """zxcvbn's result. `score` is from 0 (guessed at once) to 4. `warning` is a sentence that says
    why it is low, or is empty."""

    score: int
    warning: str


class PasswordScorer:
    """A client of the scoring process, which scores one password after the other.

    The process is started when it is needed, and ends itself after a minute without work, so that
    it takes no memory in workers without registrations.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Score]] = set()
        self._process: Process | None = None

    @property
    def waiting(self) -> int:
        """The number of passwords that are being scored or wait for it."""
        return len(self._tasks)

    async def score(self, password: str, words: Sequence[str]) -> Score:
        """Return the score of the password's first 40 characters; the words count for nothing.

        Waits for the passwords that came before. If the caller is cancelled, the password is still
        scored. Raises Busy when MAX_WAITING passwords of this worker are waiting already, which is
        logged as `excess_rate_limit_exceeded`; and when the process cannot be started, does not
        answer within TIMEOUT_SECONDS, or ends twice without an answer, which are logged as the
        error `password_scoring_failed`.
        """
        if len(self._tasks) >= MAX_WAITING:
            log.warning("excess_rate_limit_exceeded", what="password scoring")
            raise Busy
        question = json.dumps([password[:SCORED_CHARACTERS], list(words)]).encode() + b"\n"
        task = asyncio.create_task(self._score_in_turn(question))
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        # A caller who is cancelled leaves the question and its answer in step.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel the calls of `score` that wait, kill the process, and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await self._end_process()

    def _on_task_done(self, task: asyncio.Task[Score]) -> None:
        """Remove the task, and retrieve its exception, so that asyncio does not report it if the
        caller was cancelled."""
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _score_in_turn(self, question: bytes) -> Score:
        """Ask when the process is free, and once more if it ended without an answer.

        Logs the error `password_scoring_failed` and raises Busy if it then ends without an answer
        again.
        """
        async with self._lock:
            # The process may just have ended itself, or was killed: then a new one is asked.
            answer = await self._ask(question) or await self._ask(question)
        if not answer:
            log.error("password_scoring_failed", why="the process ended without an answer")
            raise Busy
        return Score(*json.loads(answer))

    async def _ask(self, question: bytes) -> bytes:
        """Send the question to the process, started if needed, and return its line of answer.

        Return empty bytes if the process has ended. Logs `password_scoring_failed` and raises Busy
        if it cannot be started or takes longer than TIMEOUT_SECONDS. Without an answer, also when
        cancelled, the process is killed.
        """
        process = self._process or await self._start_process()
        assert process.stdin
        assert process.stdout
        answer = b""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                # uvloop raises RuntimeError for a pipe that it has closed as the process ended.
                with suppress(ConnectionError, RuntimeError):
                    process.stdin.write(question)
                    answer = await process.stdout.readline()
        except TimeoutError:
            log.error("password_scoring_failed", why="the process took too long")
            raise Busy from None
        finally:
            if not answer:
                await self._end_process()
        return answer

    async def _start_process(self) -> Process:
        """Start and return the process. Logs `password_scoring_failed` and raises Busy if it cannot
        be started."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", _PROGRAM), stdin=PIPE, stdout=PIPE, stderr=DEVNULL
            )
        except OSError as error:
            log.error("password_scoring_failed", why=f"the process cannot start: {error.strerror}")
            raise Busy from None
        return self._process

    async def _end_process(self) -> None:
        """Kill the process, if there is one, and wait until it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
