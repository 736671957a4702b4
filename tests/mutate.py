"""Mutation check of docs/security.md and docs/guarantees.md: each named test must fail without the
line that it protects.

`tests/mutations.toml` lists the mutations. Each names the rows of these pages that rely on a piece
of code, the text to find in one file, and the text to put in its place. Where two pieces of
code keep one promise, `also` lists further changes that are made at the same time. For every row,
every test that the row names has to fail under at least one mutation of that row.

Each mutation runs in a copy of the checkout, so the working tree stays as it is. A test that hangs,
and a run that takes too long, prove nothing: a machine with much else to do has the same effect.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, Self

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("mutations.toml")
SECURITY, GUARANTEES = ROOT / "docs/security.md", ROOT / "docs/guarantees.md"
PAGES = (SECURITY, GUARANTEES)
TIMEOUT_SECONDS = 900
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
        path.write_text(text.replace(self.find, self.replace), "utf-8")


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


def failing(mutation: Mutation, copy: Path) -> set[str]:
    """Run the tests of the mutation in `copy`, which is left as it was. Return those that fail."""
    originals = {edit.file: (copy / edit.file).read_bytes() for edit in mutation.edits}
    for edit in mutation.edits:
        edit.apply(copy)
    try:
        words = ["-n", "0", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=no", *mutation.tests]
        ran = subprocess.run(
            [str(ROOT / ".venv/bin/python"), "-m", "pytest", *words],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return set()
    finally:
        for name, original in originals.items():
            (copy / name).write_bytes(original)
    if ran.returncode not in (0, 1):
        # The run was not completed: killed, or the tests could not be collected. It proves nothing.
        return set()
    lines = re.findall(r"^(?:FAILED|ERROR) (tests/[\w/]+\.py::\w+)(.*)", ran.stdout, re.MULTILINE)
    return {test for test, why in lines if "Failed: Timeout (>" not in why}


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
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(options.jobs):
            copies.put(_copy(Path(folder) / str(number)))

        def run(mutation: Mutation) -> set[str]:
            copy = copies.get()
            try:
                return failing(mutation, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(options.jobs) as pool:
            for mutation, failed in zip(chosen, pool.map(run, chosen), strict=True):
                for pair in mutation.pairs:
                    noticed[pair] |= pair[1] in failed
                missed = [test for test in mutation.tests if test not in failed]
                first = mutation.edits[0]
                print(f"{'noticed' if not missed else 'MISSED '}  {first.file}: ", end="")
                print(first.find.strip().splitlines()[0][:80], flush=True)
                for test in missed:
                    print(f"         {test}")
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
