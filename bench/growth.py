"""Measure how the time of every page and command grows with the collections.

`python -m bench.growth [--sizes 1e3,1e5,1e6]` builds a database for each size, with this many users
and as many sessions, audit events and notifications (`bench.population`). In turns for all sizes,
it requests every list, search, page and count, and runs commands, in this process and without a
network (`bench.site`).

Each row is the median processor time of the application and the database together, which other load
on the machine hardly changes; `--wall` gives the time that passed instead. The goal is a ratio of
at most 1.3 between the largest size and the smallest; the exit status is 1 if a row does not meet
it.

`--explain` counts instead: the index entries and documents that the queries of each row examine, as
the database explains them. These do not depend on the load of the machine at all. `--keep FOLDER`
builds the databases there, or uses those that are there, and leaves them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, redirect_stderr
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from limits import parse
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database

from bench.crowd import this_machine
from bench.examined import Examined
from bench.population import populate
from bench.rows import ADDRESS, BUSY, user_id
from bench.site import Cursors, Measured, site
from quartapp import models, startup
from quartapp.db import embedded, mongo
from quartapp.models import Role
from quartapp.models.accounts.registration import register
from quartapp.models.base.actor import SYSTEM
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings
from tests.conftest import PASSWORD

GOAL = 1.3
ROUNDS, REPEATS = 2, 10
# A second run of these would change nothing.
PAIRED = ("grant", "revoke", "disable", "enable")
LIMITS = ("limit_registration", "limit_sign_in_address", "limit_sign_in", "limit_mail")
# The collection of a database that is complete: its only document has the time of the rows.
BUILT = "bench.built"
# The caches of the embedded database, and while a database is built.
CACHE, BUILD_CACHE = "256M", "1500M"
# `explain` prints the queries that examine more than this.
SHOWN = 200
WIDTH = 400

Figures = dict[str, dict[int, float]]


class Databases:
    """The databases of all sizes, on one server. `clocks` are what measures the time used."""

    def __init__(self, folder: Path, uri: str, sizes: list[int]) -> None:
        self.uri = uri
        self.client: MongoClient[Any] = MongoClient(uri)
        self.settings = {
            size: Settings.load(
                mongodb_uri=SecretStr(uri),
                mongodb_db=f"growth{size}",
                data=folder / "data",
                allow_old_mongodb=True,
                bcrypt_cost=4,
                **{name: parse("1000000 per hour") for name in LIMITS},
            )
            for size in sizes
        }
        self.at: dict[int, Cursors] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path, sizes: list[int]) -> AsyncIterator[Databases]:
        """Start the server with this folder, and build the databases that are missing."""
        async with embedded.running(folder / "db") as mongod:
            databases = cls(folder, mongod.uri, sizes)
            # Otherwise the rows of a kept database would expire.
            databases.set("ttlMonitorEnabled", False)
            for size in sizes:
                databases.at[size] = await databases.prepare(size)
            with databases.client:
                yield databases

    def set(self, name: str, value: Any) -> None:
        """Set a parameter of the server until it ends."""
        self.client.admin.command({"setParameter": 1, name: value})

    def of_size(self, size: int) -> Database[Any]:
        return self.client[self.settings[size].mongodb_db]

    async def prepare(self, size: int) -> Cursors:
        """Build the database of this size, or renew the one that is there."""
        began, database = time.perf_counter(), self.of_size(size)
        built = database[BUILT].find_one()
        if built:
            await asyncio.to_thread(renew, database, built["at"])
            # There may be new indexes.
            await startup.prepare(self.settings[size])
        else:
            self.set("wiredTigerEngineRuntimeConfig", f"cache_size={BUILD_CACHE}")
            self.set("maxIndexBuildMemoryUsageMegabytes", 600)
            # What an interrupted run has left.
            self.client.drop_database(database.name)
            at = datetime.now(UTC)
            await asyncio.to_thread(populate, database, size, uri=self.uri)
            await startup.prepare(self.settings[size])
            await self._add_people(size)
            database[BUILT].insert_one({"at": at})
            self.set("wiredTigerEngineRuntimeConfig", f"cache_size={CACHE}")
        cursors = await asyncio.to_thread(Cursors.of, database, size)
        seconds = time.perf_counter() - began
        print(f"{size:,} users: {'renewed' if built else 'built'} in {seconds:.0f} s", flush=True)
        return cursors

    async def _add_people(self, size: int) -> None:
        """Create the two users who sign in."""
        settings = self.settings[size]
        hasher = PasswordHasher.of(settings)
        password = await hasher.hash(PASSWORD)
        hasher.close()
        new = {"$set": {"password_hash": password}}
        self.of_size(size)["users"].update_one({"_id": user_id(BUSY)}, new)
        async with mongo.connected(settings, models.DOCUMENTS):
            for name, role in (("root", "admin"), ("entrant", "member")):
                held = await Role.named(role)
                assert held is not None
                address = f"{name}@example.org"
                await register(name, address, password, roles=[held], by=SYSTEM, verified=True)


def renew(database: Database[Any], built: datetime) -> None:
    """Move the sessions that were in use when the database was built to the present, and delete
    those of earlier runs, which would be moved to the future."""
    now = datetime.now(UTC)
    by = int((now - built.replace(tzinfo=UTC)) / timedelta(milliseconds=1))
    moved = ("created_at", "seen_at", "expires_at", "confirmed_at")
    recent = {"idle_seconds": 1800, "seen_at": {"$gte": built - timedelta(minutes=10)}}
    later = {name: {"$add": [f"${name}", by]} for name in moved}
    database["sessions"].delete_many({"ip": {"$ne": ADDRESS}})
    database["sessions"].update_many(recent, [{"$set": later}])
    database[BUILT].update_one({}, {"$set": {"at": now}})


async def measure(databases: Databases, only: str, *, wall: bool) -> Figures:
    """Return the median milliseconds of each row, by size."""
    times: dict[str, dict[int, list[float]]] = {}
    clocks: list[int] = [time.CLOCK_MONOTONIC] if wall else [time.CLOCK_PROCESS_CPUTIME_ID]
    if not wall:
        process = databases.client.admin.command("serverStatus")["pid"]
        # What clock_getcpuclockid(3) returns for the process of the database.
        clocks.append((~int(process) << 3) | 2)

    def seconds_used() -> float:
        return sum(map(time.clock_gettime, clocks))

    async def timed(name: str, size: int, work: Measured, repeats: int) -> None:
        for _ in range(repeats):
            began = seconds_used()
            await work()
            seconds = seconds_used() - began
            times.setdefault(name, {}).setdefault(size, []).append(seconds * 1000)

    for turn in range(ROUNDS + 1):
        for size, settings in databases.settings.items():

            async def start(settings: Settings = settings) -> None:
                await startup.prepare(settings)

            # The first turn fills caches.
            kept = turn > 0
            if not only or only in "start-up":
                await timed("start-up", size, start, 3)
            async with site(settings, size, databases.at[size]) as here:
                for name, work in here.rows().items():
                    if only in name:
                        paired = name.endswith(PAIRED)
                        await timed(name, size, work, 1 if paired else REPEATS)
            if not kept:
                for row in times.values():
                    row.pop(size, None)
    return {
        name: {size: statistics.median(each) for size, each in row.items()}
        for name, row in times.items()
    }


async def explain(databases: Databases, only: str) -> Figures:
    """Return the number of index entries and documents that each row examines, by size.

    Prints the queries that examine more than SHOWN.
    """
    figures: Figures = {}
    examined = Examined()
    examined.install()
    for size, settings in databases.settings.items():
        async with site(settings, size, databases.at[size]) as here:
            for name, work in here.rows().items():
                if only not in name:
                    continue
                # The first request fills the caches of the application.
                if not name.endswith(PAIRED):
                    await work()
                examined.take()
                await work()
                found = examined.explain(databases.of_size(size))
                figures.setdefault(name, {})[size] = sum(each.number for each in found)
                for each in found:
                    if each.number > SHOWN:
                        print(f"{size:,} users, {name}: {each}"[:WIDTH], flush=True)
    return figures


def report(rows: Figures, sizes: list[int], unit: str, base: int) -> bool:
    """Print the table; return whether all rows meet the goal. `base` is the size compared with."""
    print(f"{unit:56}" + "".join(f"{size:>12,}" for size in sizes) + "   ratio")
    missed = []
    for name, row in rows.items():
        ratio = (row[sizes[-1]] or 1) / (row[base] or 1)
        if ratio > GOAL:
            missed.append(name)
        figures = "".join(f"{row[size]:12.1f}" for size in sizes)
        print(f"{name:56}{figures}{ratio:8.2f}{'' if ratio <= GOAL else '  above the goal'}")
    print(f"goal: every ratio at most {GOAL}: {', '.join(missed) or 'met'}")
    return not missed


async def main(options: argparse.Namespace) -> bool:
    """Build, measure and report; return whether all rows meet the goal."""
    sizes = [int(float(size)) for size in options.sizes.split(",")]
    temporary = tempfile.TemporaryDirectory(prefix="bench-")
    with nullcontext(options.keep) if options.keep else temporary as folder:
        async with Databases.running(Path(folder), sizes) as databases:
            if options.explain:
                # Counts stop at 1,000, which the smallest database may not have.
                base = sizes[max(0, len(sizes) - 2)]
                return report(await explain(databases, options.only), sizes, "examined", base)
            figures = await measure(databases, options.only, wall=options.wall)
            return report(figures, sizes, "milliseconds", sizes[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1e3,1e5,1e6")
    parser.add_argument("--only", default="", help="Measure only rows whose name contains this.")
    parser.add_argument("--wall", action="store_true", help="Measure the time that passes.")
    parser.add_argument("--explain", action="store_true", help="Count what the queries examine.")
    parser.add_argument("--keep", help="Folder of databases that are kept for further runs.")
    # The log of the application goes to standard error.
    arguments = parser.parse_args()
    if arguments.keep:
        Path(arguments.keep).mkdir(parents=True, exist_ok=True)
    with this_machine(), redirect_stderr(io.StringIO()):
        met = asyncio.run(main(arguments))
    sys.exit(not met)
