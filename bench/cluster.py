"""Measure what idle workers cost the database, and how long a barrier across hosts takes.

`python -m bench.cluster` starts a replica set of three nodes, and on it 2, 4, 8 and 16 workers, one
number after the other. They belong to several launchers, as on several hosts. While nothing
happens, it counts the operations of the primary and its processor time, less those of the replica
set without workers.

Then it stops them, joins as one worker of a host of its own, ends sessions, and measures from each
commit until all workers have acknowledged. The others are as many cheap workers
(`bench.cheap_workers`), four to a process: sixteen applications and three databases on two cores
would measure the cores. With `--real` they are the workers of the launchers.

The primary's processor time comes from /proc, so other programs disturb it less than they disturb
the times of the barrier.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from bench.crowd import percentile, this_machine
from quartapp import clock, create_app, models
from quartapp.db import mongo
from quartapp.models.accounts.registration import register
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.sessions.opening import open_session
from quartapp.models.sessions.reason import Reason
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.conftest import serving
from tests.faults.replicas import Replicas, replicas

KEY = "a key that all the hosts have, of more than 32 bytes"
# Workers of one launcher, if there are enough for two launchers.
PER_HOST = 4
# After its start a worker still builds pools of connections and reads what jobs have to do.
SETTLE_SECONDS = 5
KINDS = ("insert", "query", "update", "delete", "getmore", "command")
# By how much the cost of each worker may grow from the smallest to the largest number.
GROWTH_GOAL, CORE_GOAL, BARRIER_GOAL = 1.3, 0.01, 0.020


@dataclass(frozen=True)
class Cost:
    """Operations, `getMore` commands among them, and seconds of processor time of the primary, each
    per second."""

    operations: float
    getmores: float
    cores: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.operations - other.operations,
            self.getmores - other.getmores,
            self.cores - other.cores,
        )

    def __truediv__(self, workers: int) -> Cost:
        return Cost(self.operations / workers, self.getmores / workers, self.cores / workers)


async def cost(nodes: Replicas, seconds: float) -> Cost:
    """Return the cost of the primary within this time."""
    primary = await nodes.primary()
    assert primary.process is not None
    async with nodes.database() as database:

        async def counters() -> dict[str, int]:
            return (await database.client.admin.command("serverStatus"))["opcounters"]

        began, before, cpu = clock.monotonic(), await counters(), cpu_seconds(primary.process.pid)
        await asyncio.sleep(seconds)
        after, used = await counters(), cpu_seconds(primary.process.pid) - cpu
        took = clock.monotonic() - began
    counts = {kind: (after[kind] - before[kind]) / took for kind in KINDS}
    return Cost(sum(counts.values()), counts["getmore"], used / took)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def hosts(folder: Path, uri: str, workers: int) -> AsyncIterator[None]:
    """Run this many workers, distributed over two or more launchers on one database."""
    count = max(2, workers // PER_HOST)
    async with AsyncExitStack() as stack:
        for index in range(count):
            share = workers // count + (index < workers % count)
            await stack.enter_async_context(
                serving(
                    folder / f"host{workers}-{index}",
                    workers=share,
                    MONGODB_URI=uri,
                    SECRET_KEY=KEY,
                    LIVE_PING_SECONDS="20",
                    LIVE_SWEEP_SECONDS="30",
                )
            )
        yield


@asynccontextmanager
async def cheap_hosts(uri: str, workers: int) -> AsyncIterator[None]:
    """Run this many workers without an application, a process for each host."""
    environment = {**os.environ, "MONGODB_URI": uri, "SECRET_KEY": KEY}
    processes: list[asyncio.subprocess.Process] = []
    try:
        for first in range(0, workers, PER_HOST):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.cheap_workers", str(min(PER_HOST, workers - first))),
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


async def barriers(settings: Settings, count: int) -> tuple[list[float], int]:
    """End this many sessions as one more worker, which shares no host with the others.

    Return the seconds of each barrier, and how many barriers were incomplete.
    """
    app, day = create_app(settings), timedelta(days=1)
    seconds, incomplete = [], 0
    async with app.test_app():
        running = runtime_of(app)
        by = Actor(worker=running.lease.worker_id)
        name = f"user{running.lease.worker_id}"
        user = await register(name, f"{name}@example.org", "no password", roles=[], by=SYSTEM)
        for _ in range(count):
            session, *_ = await open_session(user, device="x", by=SYSTEM, idle=day, lifetime=day)
            event = await session.end(Reason.ENDED_BY_ADMIN, by=by)
            began = clock.monotonic()
            result = await running.barrier.wait(event)
            seconds.append(clock.monotonic() - began)
            incomplete += not result.complete
    return seconds, incomplete


async def measure(options: argparse.Namespace) -> bool:
    """Print one row for each number of workers, and the goals. Return whether all were met."""
    costs: dict[int, Cost] = {}
    slowest = 0.0
    missed = 0
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        async with replicas(folder / "nodes") as nodes:
            settings = Settings.load(
                mongodb_uri=SecretStr(nodes.uri),
                secret_key=SecretStr(KEY),
                allow_old_mongodb=True,
                data=folder / "asker",
            )
            async with mongo.connected(settings, models.DOCUMENTS):
                await models.prepare()
            await asyncio.sleep(SETTLE_SECONDS)
            # It is subtracted from all others, and can only be disturbed to be too high.
            without = [await cost(nodes, options.seconds) for _ in range(3)]
            alone = min(without, key=lambda each: each.cores)
            print(f"without workers: {alone.operations:.0f} operations/s, {alone.cores:.1%}\n")
            print(f"{'':8}{'of the primary, per second':^30}{'per worker':^27}{'barrier, ms':^24}")
            heads = ("getMore", "all", "core", "getMore", "all", "core", "p50", "p99", "worst")
            print(f"{'workers':>8}" + "".join(f"{head:>9}" for head in heads))
            seconds, incomplete = [], 0
            for workers in options.workers:
                async with hosts(folder, nodes.uri, workers):
                    await asyncio.sleep(SETTLE_SECONDS)
                    total = await cost(nodes, options.seconds) - alone
                    each = costs[workers] = total / workers
                    if options.real:
                        seconds, incomplete = await barriers(settings, options.revocations)
                if not options.real:
                    async with cheap_hosts(nodes.uri, workers):
                        seconds, incomplete = await barriers(settings, options.revocations)
                slowest = max(slowest, percentile(seconds, 99))
                missed += incomplete
                figures = (statistics.median(seconds), percentile(seconds, 99), max(seconds))
                print(f"{workers:8}" + row(total) + row(each) + "".join(map(ms, figures)))
    smallest, largest = costs[min(costs)], costs[max(costs)]
    most = max(each.cores for each in costs.values())
    goals = [
        goal(
            "operations per worker, growth", largest.operations / smallest.operations, GROWTH_GOAL
        ),
        goal("core per worker, ratio", largest.cores / smallest.cores, GROWTH_GOAL),
        goal("core per worker, in %", most * 100, CORE_GOAL * 100),
        goal("barrier p99, in ms", slowest * 1000, BARRIER_GOAL * 1000),
        goal("incomplete barriers", missed, 0),
    ]
    return all(goals)


def row(cost: Cost) -> str:
    return f"{cost.getmores:9.1f}{cost.operations:9.1f}{cost.cores:9.2%}"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:9.1f}"


def goal(what: str, reached: float, at_most: float) -> bool:
    """Print whether the goal was met, and return it."""
    met = reached <= at_most
    print(f"{what:32}{reached:8.2f}  goal {at_most:g}: {'met' if met else 'MISSED'}")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=15, help="for which each is measured")
    parser.add_argument("--revocations", type=int, default=200)
    parser.add_argument("--real", action="store_true", help="time barriers of real workers")
    options = parser.parse_args()
    with this_machine():
        met = asyncio.run(measure(options))
    sys.exit(not met)


if __name__ == "__main__":
    main()
