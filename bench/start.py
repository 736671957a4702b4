"""Measure how long commands and the server take to start.

`python -m bench.start` starts each of them in turn with `python -c "import quart"`, and prints the
medians of the elapsed time and of the processor time, and the median of the ratios to the elapsed
time of that import in the same round. A shared machine may be twice as fast in one minute as in the
next, so the goals are ratios: those in seconds are divided by what the import takes on the quiet
machine of bench/README.md. The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.crowd import this_machine
from tests.people import Stat

TOP = Path(__file__).parent.parent
# What `python -c "import quart"` takes on a quiet machine.
QUIET_IMPORT_SECONDS = 0.25
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """What was measured of one program. `goal` is in seconds on a quiet machine, or None."""

    name: str
    goal: float | None = None
    elapsed: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def ratio(self, base: Row) -> float:
        """Return the median of the ratios to the elapsed time of `base` in the same round."""
        return statistics.median(
            ours / theirs for ours, theirs in zip(self.elapsed, base.elapsed, strict=True)
        )

    def line(self, base: Row) -> str:
        goal = f"{self.goal / QUIET_IMPORT_SECONDS:.1f} ({self.goal} s)" if self.goal else ""
        return (
            f"{self.name:32} {statistics.median(self.elapsed):8.2f} s "
            f"{statistics.median(self.processor):8.2f} s {self.ratio(base):8.2f}   {goal}"
        )

    def misses(self, base: Row) -> bool:
        return self.goal is not None and self.ratio(base) > self.goal / QUIET_IMPORT_SECONDS


def main(rounds: int) -> int:
    base = Row('python -c "import quart"')
    help_page = Row("quartapp --help", 0.3)
    beside = Row("quartapp user list, beside it", 0.8)
    one, two = Row("script/server, one worker"), Row("script/server, two workers", 1.5)
    with tempfile.TemporaryDirectory() as folder, this_machine():
        data = ["--data", str(Path(folder) / "data")]
        with server(Row("creates the database"), 2, data):
            pass
        for _ in range(rounds):
            command(base, "-c", "import quart")
            command(help_page, "-m", "quartapp", "--help")
            with server(one, 1, data):
                pass
            with server(two, 2, data):
                command(beside, "-m", "quartapp", "user", "list", *data)
    print(f"{'':32} {'elapsed':>10} {'processor':>10} {'ratio':>8}   goal")
    rows = [base, help_page, beside, one, two]
    for row in rows:
        print(row.line(base))
    return int(any(row.misses(base) for row in rows))


def command(row: Row, *words: str) -> None:
    """Run Python to its end, and add a measurement to the row. Raises AssertionError on failure."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=TOP, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    row.elapsed.append(time.perf_counter() - began)
    row.processor.append(used.ru_utime + used.ru_stime)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words


@contextmanager
def server(row: Row, workers: int, options: Sequence[str]) -> Iterator[None]:
    """Run script/server for the block, and add a measurement to the row.

    It ends when the server prints its address, which it does when all workers serve. The processor
    time is that of the server's processes, without the database.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        ["script/server", "--port", "0", "--workers", str(workers), *options],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        row.elapsed.append(time.perf_counter() - began)
        row.processor.append(processor_seconds(process.pid))
        assert line.startswith("quartapp serves "), line
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def processor_seconds(top: int) -> float:
    """Return the processor time of a process, of its descendants, and of those that it has waited
    for."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = Stat.of(int(path.name)).parent
    wanted = {top}
    while found := {pid for pid, parent in parents.items() if parent in wanted} - wanted:
        wanted |= found
    total = 0
    for pid in wanted:
        with suppress(OSError):
            # utime, stime, cutime and cstime, of which the first is the 14th field.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICKS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    sys.exit(main(parser.parse_args().rounds))
