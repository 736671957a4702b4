"""Sign-ins of quartapp beside what bcrypt allows, and how long a page takes meanwhile.

Each round measures three things for some seconds: how long a page takes while nothing else happens;
how many hashes one thread for each core checks; and how many users sign in over a form, while the
page is requested again. The users sign in for the first time, each from another address.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from operator import truediv
from urllib.parse import urlencode, urlsplit

import bcrypt

from bench.crowd import AT_ONCE, House, percentile
from bench.peers.load import Connection, get
from bench.peers.stacks import PAGE, PASSWORD, cpu_seconds
from bench.tabs import several
from quartapp.db.embedded import DataFolder
from quartapp.models import Role
from quartapp.models.accounts.registration import register
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import MEMBER
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings
from tests.people import Person

COST = 12
SETTINGS = {"BCRYPT_COST": str(COST), "TRUSTED_PROXIES": '["127.0.0.0/8"]'}
CORES = os.cpu_count() or 1
# Enough that a thread never waits for the next password.
CLIENTS = 4 * CORES
PAUSE = 0.05
LEAST_RATE = 0.95
MOST_DELAY = 3.0


@dataclass
class Result:
    """Rates of successive measurements, and the CPU time and the number of all together."""

    rates: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    count: int = 0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cpu_each(self) -> float:
        return self.cpu_seconds / self.count


async def measure(running: House, seconds: float, rounds: int) -> bool:
    """Measure, print the results, and return whether both goals were met.

    The CPU time of a sign-in is that of the worker and the database, without what they use while
    only the pages are requested; that of a hash is the CPU time of this process. Their ratio is
    what the rates come to when nothing else needs the cores.
    """
    member = await Role.named(MEMBER)
    assert member is not None
    (reader,) = await running.people("reader", 1, role=member)
    idle: list[float] = []
    busy: list[float] = []
    hashes, signed_in = Result(), Result()
    async with Person(running.server.url, "visitor", PASSWORD) as visitor:
        token = await visitor.csrf_token("/login")
        sign_ins = SignIns(running, visitor.cookies(), token)
        # More than bcrypt allows, also on a machine that is faster than most.
        await sign_ins.create_users(int(12 * CORES * seconds * (rounds + 1)), member)
        await repeat(sign_ins.one, CLIENTS, 2, Result())
        processes, page = sign_ins.processes(), (running.server.url, reader.cookies[0])
        for _ in range(rounds):
            before, began = cpu_seconds(processes), time.perf_counter()
            idle += await pages(*page, asyncio.sleep(seconds))
            background = (cpu_seconds(processes) - before) / (time.perf_counter() - began)
            await hash_repeatedly(seconds, hashes)
            before, began = cpu_seconds(processes), time.perf_counter()
            busy += await pages(*page, repeat(sign_ins.one, CLIENTS, seconds, signed_in))
            took = time.perf_counter() - began
            signed_in.cpu_seconds += cpu_seconds(processes) - before - background * took
    return report(hashes, signed_in, idle, busy)


def report(hashes: Result, signed_in: Result, idle: list[float], busy: list[float]) -> bool:
    """Print the results, and return whether both goals were met."""
    ratios = [*map(truediv, signed_in.rates, hashes.rates)]
    share, delay = statistics.median(ratios), percentile(busy, 99) / percentile(idle, 99)
    print(f"\nSign-ins, bcrypt cost {COST}, one worker with a bcrypt thread on each core")
    for name, result in (("bcrypt alone", hashes), ("sign-ins", signed_in)):
        print(f"  {name:15}{result.rate:7.2f}/s {1000 * result.cpu_each:6.1f} ms of CPU time")
    print(
        f"  ratio {share:.3f} ({', '.join(f'{each:.3f}' for each in ratios)}), of CPU time"
        f" {hashes.cpu_each / signed_in.cpu_each:.3f}   {verdict(share >= LEAST_RATE)} {LEAST_RATE}"
    )
    for name, took in (("idle", idle), ("during sign-ins", busy)):
        print(
            f"  page, {name:16} p50 {1000 * percentile(took, 50):5.1f}"
            f"  p99 {1000 * percentile(took, 99):5.1f}  max {1000 * max(took):5.1f} ms"
            f"  ({len(took)} requests)"
        )
    print(f"  ratio of the p99 {delay:.2f}   {verdict(delay <= MOST_DELAY)} {MOST_DELAY}")
    return share >= LEAST_RATE and delay <= MOST_DELAY


class SignIns:
    """Signs one user after the other in, each on a new connection."""

    def __init__(self, running: House, cookies: str, token: str) -> None:
        self._running = running
        self._url = running.server.url
        self._data = running.server.data
        self._cookies, self._token = cookies, token
        self._numbers = count()

    def processes(self) -> list[int]:
        """Return the ids of the worker and of mongod."""
        mongod = DataFolder(self._data).mongod_pid()
        assert mongod
        return [mongod, *self._running.processes().values()]

    async def create_users(self, number: int, member: Role) -> None:
        """Create the users in the database, all with one hash of PASSWORD."""
        hasher = PasswordHasher.of(Settings.load(data=self._data, bcrypt_cost=COST))
        hashed = await hasher.hash(PASSWORD)
        hasher.close()

        async def create(number: int) -> None:
            name = f"entrant{number}"
            await register(name, f"{name}@example.org", hashed, roles=[member], by=SYSTEM)

        await several(create, range(number), at_once=AT_ONCE)

    async def one(self) -> None:
        """Sign the next user in. Raises AssertionError unless the answer is the redirect with the
        cookie of a session."""
        number = next(self._numbers)
        fields = {"csrf_token": self._token, "login": f"entrant{number}", "password": PASSWORD}
        body = urlencode(fields)
        request = (
            f"POST /login HTTP/1.1\r\nHost: {urlsplit(self._url).netloc}\r\n"
            f"Origin: {self._url}\r\nCookie: {self._cookies}\r\nUser-Agent: bench\r\n"
            f"X-Forwarded-For: 198.51.{number // 250}.{number % 250 + 1}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        connection = await Connection.open(self._url)
        answer = await connection.ask(request.encode())
        connection.close()
        assert answer.status == 303, answer
        assert b"set-cookie: quartapp_session=" in answer.head.lower(), answer


async def repeat(
    one: Callable[[], Awaitable[object]], clients: int, seconds: float, result: Result
) -> None:
    """Let this many clients repeat the work for some seconds, and add the rate and the number.

    The rate is that between the first and the last end within the time, so neither the start nor
    what is under way at the end changes it.
    """
    ends: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < until:
            await one()
            ends.append(time.perf_counter())

    await asyncio.gather(*(client() for _ in range(clients)))
    within = [end for end in ends if end < until]
    result.rates.append((len(within) - 1) / (within[-1] - within[0]))
    result.count += len(ends)


async def hash_repeatedly(seconds: float, result: Result) -> None:
    """Check hashes with one thread for each core, as `repeat` does."""
    hashed = bcrypt.hashpw(b"", bcrypt.gensalt(COST))
    with ThreadPoolExecutor(CORES) as pool:
        loop = asyncio.get_running_loop()

        def one() -> Awaitable[object]:
            return loop.run_in_executor(pool, bcrypt.checkpw, PASSWORD.encode(), hashed)

        before = time.process_time()
        await repeat(one, CORES, seconds, result)
        result.cpu_seconds += time.process_time() - before


async def pages(url: str, cookie: str, work: Awaitable[None]) -> list[float]:
    """Request a page again and again during the work, with a pause; return the seconds of each."""
    connection = await Connection.open(url)
    request = get(url, PAGE, cookie)
    took = []
    task = asyncio.ensure_future(work)
    while not task.done():
        answer = await connection.ask(request)
        assert answer.status == 200, answer
        took.append(answer.seconds)
        await asyncio.sleep(PAUSE)
    connection.close()
    await task
    return took


def verdict(met: bool) -> str:
    return "meets the goal" if met else "MISSES the goal"
