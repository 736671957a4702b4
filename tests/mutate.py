"""Mutation check of docs/security.md and docs/guarantees.md: each named test must fail without the
line that it protects.

`tests/mutations.toml` lists the mutations. Each names the rows of these pages that rely on a piece
of code, the text to find in one file, and the text to put in its place. Where two pieces of
code keep one promise, `also` lists further changes that are made at the same time. For every row,
every test that the row names has to fail under at least one mutation of that row.

Each mutation runs in a copy of the checkout, so the working tree stays as it is. A test that hangs,
and a run that takes too long, prove nothing: a machine with much else to do has the same effect.

This process imports the libraries once and runs pytest in forks of itself. A fork imports quartapp
and the tests from its copy. Once a test function has failed, its other parameters are skipped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("mutations.toml")
SECURITY, GUARANTEES = ROOT / "docs/security.md", ROOT / "docs/guarantees.md"
PAGES = (SECURITY, GUARANTEES)
TIMEOUT_SECONDS = 900
# Modules of the copy, and those that pytest has to import itself: it changes their assertions.
IMPORTED_BY_PYTEST = re.compile(
    r"(quartapp|tests|bench|_?pytest|xdist|anyio|time_machine)(\W|_|\Z)"
)
Pair = tuple[str, str]


@dataclass(frozen=True)
class Edit:
    """One change to one file."""

    file: str
    find: str
    replace: str

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Self:
        return cls(entry["file"], entry["find"], entry.get("replace", ""))

    def apply(self, root: Path) -> None:
        """Change the file below `root`. Raises ValueError unless the text occurs exactly once."""
        path = root / self.file
        text = path.read_text("utf-8")
        if text.count(self.find) != 1:
            raise ValueError(f"{self.file}: found {text.count(self.find)} times: {self.find!r}")
        _write(path, text.replace(self.find, self.replace).encode())


@dataclass(frozen=True)
class Mutation:
    """Changes that are made together, and the tests that must notice them, by row of the page."""

    edits: tuple[Edit, ...]
    pairs: frozenset[Pair]

    @property
    def tests(self) -> list[str]:
        return sorted({test for _, test in self.pairs})


def tests_by_row(*pages: Path) -> dict[str, list[str]]:
    """Return the tests that each row of the pages names, of both by default.

    The checks of the pages themselves, in test_security_doc.py, are left out.

    A row is named by its first cell: an ASVS number, or the name of a guarantee.
    """
    found = {}
    for page in pages or PAGES:
        for line in page.read_text("utf-8").splitlines():
            row = re.match(r"\| (\d+\.\d+\.\d+|[a-z][a-z -]+) \|", line)
            named = re.findall(r"`(tests/[\w/]+\.py::\w+)`", line.split(" | ")[-1])
            if row and named:
                found[row[1]] = [test for test in named if "test_security_doc.py" not in test]
    return found


def mutations() -> list[Mutation]:
    """Read the table. Raises ValueError for a row, or a test of a row, that does not exist."""
    named = tests_by_row()
    found = []
    for entry in tomllib.loads(TABLE.read_text("utf-8"))["mutation"]:
        pairs = frozenset(_pairs(entry["rows"], entry.get("tests"), named))
        edits = tuple(Edit.of(each) for each in (entry, *entry.get("also", ())))
        found.append(Mutation(edits, pairs))
    return found


def _pairs(
    rows: Collection[str], tests: Collection[str] | None, named: Mapping[str, list[str]]
) -> Iterator[Pair]:
    """Yield row and test; `tests` are the names of test functions, None for all of each row."""
    for row in rows:
        if not named.get(row):
            raise ValueError(f"row {row} names no test")
        kept = [t for t in named[row] if tests is None or t.partition("::")[2] in tests]
        if not kept:
            raise ValueError(f"row {row} names none of {tests}")
        yield from ((row, test) for test in kept)


_seconds = count(int(time.time()))


def _write(path: Path, content: bytes) -> None:
    """Write the file, with a time of modification of its own.

    Python compares this time, in seconds, to see whether the compiled file is up to date.
    """
    path.write_bytes(content)
    os.utime(path, (when := next(_seconds), when))


class Failures:
    """A plugin of pytest that collects the test functions that fail, except for timeouts."""

    def __init__(self) -> None:
        self.tests: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip the other parameters of a function that has failed."""
        if _function(item.nodeid) in self.tests:
            pytest.skip("has failed with another parameter")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and "Failed: Timeout (>" not in report.longreprtext:
            self.tests.add(_function(report.nodeid))


def _function(nodeid: str) -> str:
    return nodeid.partition("[")[0]


class Run:
    """A fork that runs the tests of a mutation in `copy`, which `end` leaves as it was."""

    def __init__(self, mutation: Mutation, copy: Path) -> None:
        self.mutation, self.copy = mutation, copy
        self._originals = {edit.file: (copy / edit.file).read_bytes() for edit in mutation.edits}
        for edit in mutation.edits:
            edit.apply(copy)
        self._report = copy.with_suffix(".json")
        self._report.unlink(missing_ok=True)
        self._began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _run_pytest(copy, mutation.tests, self._report)
            except BaseException:
                traceback.print_exc()
            os._exit(0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def end(self) -> set[str]:
        """Undo the changes, and return the tests that failed: none if the run was not completed."""
        for name, original in self._originals.items():
            _write(self.copy / name, original)
        return set(json.loads(self._report.read_text())) if self._report.exists() else set()


def _run_pytest(copy: Path, tests: Sequence[str], report: Path) -> None:
    """Run the tests in `copy`. Write those that fail to `report` as JSON, unless the run is killed,
    or the tests cannot be collected."""
    output = os.open(copy.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    for name in [name for name in sys.modules if re.match(r"tests(\.|\Z)", name)]:
        del sys.modules[name]
    # Processes that a test starts with multiprocessing would import the main module again.
    sys.modules["__main__"] = ModuleType("__main__")
    failures = Failures()
    # Failed tests leave their databases, which the next run in this copy deletes.
    folder = copy.with_suffix(".tmp")
    words = ["-n", "0", "-q", "-p", "no:cacheprovider", "--tb=line", f"--basetemp={folder}"]
    status = pytest.main([*words, *tests], plugins=[failures])
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        report.write_text(json.dumps(sorted(failures.tests)))


def _import_libraries() -> None:
    """Import the libraries that the application and the tests use, but none of their modules."""
    program = "import sys, quartapp.application, tests.conftest; print(*sys.modules)"
    listed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        if not IMPORTED_BY_PYTEST.match(name):
            importlib.import_module(name)
    # Every fork would use this one instead of its copy, and so no mutation.
    assert "quartapp" not in sys.modules, "a library has imported the application"


def failures_of(
    chosen: Sequence[Mutation], copies: Sequence[Path]
) -> Iterator[tuple[Mutation, set[str], float]]:
    """Run the mutations, one at a time in each copy.

    Yield each with the tests that failed and the seconds that the run took, as soon as it ends.
    """
    waiting, free, runs = list(reversed(chosen)), list(copies), dict[int, Run]()
    while waiting or runs:
        while waiting and free:
            run = Run(waiting.pop(), free.pop())
            runs[run.pid] = run
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            for run in runs.values():
                if run.seconds > TIMEOUT_SECONDS:
                    os.kill(run.pid, signal.SIGKILL)
            time.sleep(0.05)
            continue
        run = runs.pop(pid)
        free.append(run.copy)
        yield run.mutation, run.end(), run.seconds


def main() -> int:
    """Print each test that does not fail when its line is gone. Return the exit status."""
    parser = argparse.ArgumentParser(prog="script/mutate")
    parser.add_argument("rows", nargs="*", help="rows such as 6.2.8 or atomicity")
    parser.add_argument("--guarantees", action="store_true", help="all rows of docs/guarantees.md")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    rows = {*options.rows, *(tests_by_row(GUARANTEES) if options.guarantees else ())}
    chosen = [m for m in mutations() if not rows or {row for row, _ in m.pairs} & rows]
    noticed: dict[Pair, bool] = defaultdict(bool)
    _import_libraries()
    with tempfile.TemporaryDirectory() as folder:
        copies = [_copy(Path(folder) / str(number)) for number in range(options.jobs)]
        for mutation, failed, seconds in failures_of(chosen, copies):
            for pair in mutation.pairs:
                noticed[pair] |= pair[1] in failed
            missed = [test for test in mutation.tests if test not in failed]
            first = mutation.edits[0]
            print(f"{'MISSED ' if missed else 'noticed'} {seconds:4.0f} s  {first.file}: ", end="")
            print(first.find.strip().splitlines()[0][:80], flush=True)
            for test in missed:
                print(f"                {test}")
    survived = sorted(pair for pair, was_noticed in noticed.items() if not was_noticed)
    for row, test in survived:
        print(f"{row}: {test} passes without the lines that it protects")
    print(f"{len(chosen)} mutations, {len(noticed)} tests of rows, {len(survived)} not proven")
    return 1 if survived else 0


def _copy(target: Path) -> Path:
    """Copy the files that git knows, with their changes, to a new folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / ".venv").symlink_to(ROOT / ".venv")
    return target


if __name__ == "__main__":
    sys.exit(main())
