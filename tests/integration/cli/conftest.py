"""Fixtures for tests of the command line."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from quartapp.db import embedded
from tests.people import CommandResult, command


@dataclass(frozen=True)
class Terminal:
    """Runs commands on one data folder, whose database is already running to save time."""

    data: Path

    async def run(self, *words: str, stdin: bytes = b"", **env: str) -> CommandResult:
        return await command(*words, data=self.data, stdin=stdin, **env)

    async def does(self, *words: str, stdin: bytes = b"") -> str:
        ran = await self.run(*words, stdin=stdin)
        assert (ran.status, ran.err) == (0, ""), ran
        return ran.out

    async def refuses(self, *words: str, stdin: bytes = b"", **env: str) -> str:
        return complaint(await self.run(*words, stdin=stdin, **env))


def complaint(ran: CommandResult) -> str:
    """Return the line on standard error of a command that must have failed with exactly one."""
    assert (ran.status, ran.out) == (1, ""), ran
    assert ran.err.startswith("quartapp: "), ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.endswith("\n")
    assert "Traceback" not in ran.err
    return ran.err.removeprefix("quartapp: ").strip()


@pytest.fixture(scope="module")
async def terminal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Terminal]:
    """A terminal whose database the tests of one module share."""
    data = tmp_path_factory.mktemp("cli")
    async with embedded.running(data):
        yield Terminal(data)
