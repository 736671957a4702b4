"""Measure how a flood of failing sign-ins affects other requests.

`python -m bench.flood` sends them to one worker with password hashes at their real cost: first all
for one account from one address, then each for another account from another address. No rate limit
applies to the second kind; only the queue for password hashing bounds it. Meanwhile a separate
process requests /livez and a signed-in page, and the worker measures how late its event loop is.
The exit status is 1 if more than one sample in a hundred was over 50 ms.

`--costly` sends the costliest input of each kind instead: see `bench.costly`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

from bench import costly
from bench.crowd import this_machine
from tests.conftest import PASSWORD, serving
from tests.people import Person

GOAL_MS = 50.0
PAUSE = 0.01
PAGES = ("/livez", "/account/password")


async def main(count: int, cost: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            serving(
                Path(folder) / "data",
                workers=1,
                BCRYPT_COST=str(cost),
                LIMIT_SIGN_IN_ADDRESS="30 per 5 minutes",
                TRUSTED_PROXIES='["127.0.0.0/8"]',
            ) as server,
            Person(server.url, "ada", PASSWORD) as ada,
            Person(server.url, "stranger", PASSWORD) as stranger,
        ):
            await ada.register()
            token = await stranger.csrf_token("/login")
            worst = 0.0
            quiet, _ = await measure(server.url, ada, asyncio.sleep(3))
            show("nobody", quiet, Counter(), 3)
            for name in ("one account", "every account"):
                spread = name == "every account"
                flood = Flood(server.url, stranger.cookies(), token, count, spread)
                began = time.perf_counter()
                found, late = await measure(server.url, ada, flood.run())
                show(name, found, flood.answers, time.perf_counter() - began)
                print(
                    f"  the event loop was over {GOAL_MS:.0f} ms late in {late:.1%} of the samples"
                )
                worst = max(worst, late)
    return 1 if worst > 0.01 else 0


class Flood:
    """Sends `count` sign-ins at once, each on its own connection.

    With `spread`, each is for another account and from another address.
    """

    def __init__(self, url: str, cookies: str, token: str, count: int, spread: bool) -> None:
        self.answers: Counter[int] = Counter()
        self._url, self._cookies, self._token = url, cookies, token
        self._count, self._spread = count, spread

    async def run(self) -> None:
        connections = await asyncio.gather(*(_open(self._url) for _ in range(self._count)))
        await asyncio.gather(
            *(self._attempt(number, *each) for number, each in enumerate(connections))
        )

    async def _attempt(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        login = f"user-{number}" if self._spread else "ada"
        address = f"203.0.{number // 250}.{number % 250 + 1}" if self._spread else "203.0.113.1"
        body = urlencode({"csrf_token": self._token, "login": login, "password": "wrong one"})
        lines = {
            "Cookie": self._cookies,
            "Origin": self._url,
            "X-Forwarded-For": address,
            "Content-Type": "application/x-www-form-urlencoded",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        writer.write(_request("POST", "/login", self._url, lines) + body.encode())
        self.answers[int((await reader.readline()).split()[1])] += 1
        await reader.read()
        writer.close()


async def measure(
    url: str, ada: Person, work: Awaitable[None]
) -> tuple[dict[str, list[float]], float]:
    """Return the milliseconds that each page took during the work, and the share of samples in
    which the event loop was late."""
    async with probe(url, ada.cookies()) as process:
        before = await lags(ada)
        await work
        after = await lags(ada)
        out, _ = await process.communicate(b"\n")
    looks, in_time = (b - a for a, b in zip(before, after, strict=True))
    return json.loads(out), 1 - in_time / looks


async def lags(ada: Person) -> tuple[float, float]:
    """Return how many samples of the loop's lag the worker has taken, and how many met the goal."""
    text = (await ada.get("/metrics")).text
    bucket = f'quartapp_loop_lag_seconds_bucket{{le="{GOAL_MS / 1000}"}}'
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines())
    return float(lines["quartapp_loop_lag_seconds_count"]), float(lines[bucket])


@asynccontextmanager
async def probe(url: str, cookies: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the probing process (see `ask`); yield it once it has started."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.flood", "--probe", url, cookies),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ask(url: str, cookies: str) -> None:
    """Run the probing process: request PAGES until standard input has a line, then print the
    milliseconds that each took, as JSON."""
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    told = loop.run_in_executor(None, sys.stdin.readline)
    took: dict[str, list[float]] = {page: [] for page in PAGES}

    async def keep_asking(page: str) -> None:
        reader, writer = await _open(url)
        request = _request("GET", page, url, {"Cookie": cookies})
        while not told.done():
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            took[page].append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(PAUSE)
        writer.close()

    await asyncio.gather(*(keep_asking(page) for page in PAGES))
    print(json.dumps(took))


async def _open(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def _request(method: str, path: str, url: str, lines: dict[str, str]) -> bytes:
    head = {"Host": url.removeprefix("http://"), **lines}
    text = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode()


def show(name: str, found: dict[str, list[float]], answers: Counter[int], seconds: float) -> None:
    said = ", ".join(f"{status}: {number}" for status, number in sorted(answers.items()))
    print(f"\n{name}: {seconds:.1f} s, answers {said or 'none'}")
    for page, took in found.items():
        numbers = (statistics.median(took), quantile(took, 0.99), max(took))
        print(f"  {page:20} p50 {numbers[0]:6.1f}  p99 {numbers[1]:6.1f}  max {numbers[2]:6.1f} ms")


def quantile(numbers: list[float], part: float) -> float:
    return sorted(numbers)[int(part * (len(numbers) - 1))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--cost", type=int, default=12)
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--costly", action="store_true")
    parser.add_argument("--only", default="", help="send only the kinds whose name contains this")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each kind of costly input")
    parser.add_argument(
        "--revocations", type=int, default=10, help="during each kind of costly input"
    )
    parser.add_argument("--attack", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--livez", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        asyncio.run(ask(*options.probe))
    elif options.attack:
        asyncio.run(costly.attack(*options.attack))
    elif options.livez:
        asyncio.run(costly.ask(options.livez))
    elif options.costly:
        with this_machine():
            met = asyncio.run(
                costly.measure(options.seconds, options.revocations, options.cost, options.only)
            )
        sys.exit(not met)
    else:
        with this_machine():
            late = asyncio.run(main(options.count, options.cost))
        sys.exit(late)
