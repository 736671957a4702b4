"""Compare the throughput of a signed-in page with that of a bare application, one worker each.

The bare application is Quart and Quart-Auth with a stateless cookie, the same template and no
database, so it shows the cost of the libraries. `python -m bench.page` prints the median requests
per second of both, and the median of the ratios of successive measurements. It makes many short
measurements, because a shared machine may be twice as fast in one second as in the next.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import truediv
from pathlib import Path

from bench.crowd import this_machine
from tests.conftest import PASSWORD, serving
from tests.people import Person

CONNECTIONS = 16


async def main(seconds: float, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            serving(Path(folder) / "data", workers=1) as server,
            Person(server.url, "ada", PASSWORD) as ada,
            bare() as (bare_url, bare_cookie),
        ):
            await ada.register()
            # The welcome message is shown once. After that the cookies are the usual ones.
            await ada.get("/")
            ours = (server.url, ada.cookies())
            for path in ("/account/password", "/api/me"):
                rates: dict[str, list[float]] = {"quartapp": [], "bare": []}
                for _ in range(rounds):
                    rates["bare"].append(await rate(bare_url, bare_cookie, path, seconds))
                    rates["quartapp"].append(await rate(*ours, path, seconds))
                middle = {name: statistics.median(each) for name, each in rates.items()}
                print(
                    f"{path:20} quartapp {middle['quartapp']:7.0f}/s  bare {middle['bare']:7.0f}/s"
                    f"  ratio {statistics.median(map(truediv, *rates.values())):.2f}"
                )


async def rate(url: str, cookie: str, path: str, seconds: float) -> float:
    """Return the requests per second over CONNECTIONS keep-alive connections.

    Raises AssertionError for a response other than 200.
    """
    host, port = url.removeprefix("http://").split(":")
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: {cookie}\r\n"
        "Accept: text/html\r\nUser-Agent: bench\r\n\r\n"
    ).encode()
    until = time.perf_counter() + seconds
    began = time.perf_counter()
    counts = await asyncio.gather(
        *(_ask(host, int(port), request, until) for _ in range(CONNECTIONS))
    )
    return sum(counts) / (time.perf_counter() - began)


async def _ask(host: str, port: int, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    count = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        count += 1
    writer.close()
    return count


@asynccontextmanager
async def bare() -> AsyncIterator[tuple[str, str]]:
    """Run the bare application in a subprocess; yield its URL and a signed-in cookie."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.bare", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url, cookie = (await process.stdout.readline()).decode().split()
        yield url, cookie
    finally:
        process.terminate()
        await process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    with this_machine():
        asyncio.run(main(options.seconds, options.rounds))
