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
    """`score` is from 0, guessed at once, to 4. `warning` says why it is low, or is empty."""

    score: int
    warning: str


class PasswordScorer:
    """Asks the scoring process, one password after the other.

    The process is started when it is first needed and ends itself after a minute without work, so
    that a worker which registers nobody does without its memory.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Score]] = set()
        self._process: Process | None = None

    async def score(self, password: str, words: Sequence[str]) -> Score:
        """Return the score of the password's first 40 characters; the words count for nothing.

        Raises Busy when 32 passwords are waiting, when the process cannot be started, and when it
        does not answer within 10 seconds.
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
        """End the process and all waiting questions."""
        for task in self._tasks:
            task.cancel()
        await self._end_process()

    def _on_task_done(self, task: asyncio.Task[Score]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _score_in_turn(self, question: bytes) -> Score:
        async with self._lock:
            # The process may just have ended itself, or was killed: then a new one is asked.
            answer = await self._ask(question) or await self._ask(question)
        if not answer:
            log.error("password_scoring_failed", why="the process ended without an answer")
            raise Busy
        return Score(*json.loads(answer))

    async def _ask(self, question: bytes) -> bytes:
        """The answer, or nothing when the process has ended. Raises Busy when it takes too long."""
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
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", _PROGRAM), stdin=PIPE, stdout=PIPE, stderr=DEVNULL
            )
        except OSError as error:
            log.error("password_scoring_failed", why=f"the process cannot start: {error.strerror}")
            raise Busy from None
        return self._process

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
