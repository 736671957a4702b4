"""Compare the cost of every signed-in page with that of a bare application, one worker each.

The bare application (`bench.bare`) is Quart and Quart-Auth with a stateless cookie. It renders the
same template with the same data, and sends as many queries, each for one document. So the ratio
shows what sessions, live authority, models and the real queries cost beyond the libraries.

`python -m bench.page` prints for each page the requests per second of the worker's processor time,
as the kernel counted it, of both applications, their ratio, and the rate beside that of `/api/me`.
A worker that is busy answers that many in a second. Processor time matters little to what else
runs on the machine; the measurements of both take turns, because it is not always equally fast.
The goal is a ratio of at least 0.5 for every page; otherwise the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.crowd import House, Someone, house, this_machine
from quartapp.activities import ROLE_GRANTED
from quartapp.db.mongo import transaction
from quartapp.models import Comment, Post, Role
from quartapp.models.base.actor import Actor
from quartapp.models.notifications.notice import notify
from quartapp.policy import ADMIN

CONNECTIONS = 16
GOAL = 0.5
ROWS = 30
MEMBER = (
    "/api/me",
    "/",
    "/account",
    "/account/password",
    "/account/email",
    "/account/sessions",
    "/account/notices",
    "/account/timeline",
    "/account/factors",
    "/account/export",
    "/account/delete",
    "/posts",
    "/posts/new",
    "/posts/{post}",
    "/posts/{post}/edit",
    "/users/a0",
)
ADMINISTRATION = (
    "/admin/users",
    "/admin/users/a0",
    "/admin/roles",
    "/admin/roles/member",
    "/admin/sessions",
    "/admin/events",
    "/admin/invitations",
)


async def main(seconds: float, rounds: int, only: list[str]) -> bool:
    """Print the figures, and return whether every page reaches the goal."""
    async with house(1) as home:
        author, paths = await _furnish(home)
        paths = [path for path in paths if not only or path in only]
        ours = Target(home.server.url, author.cookies[-1], home.processes()["0"])
        async with bare(home, author.cookies[-1], paths) as (theirs, queries):
            met, reference = True, 0.0
            for path, count in zip(paths, queries, strict=True):
                costs = {ours: Cost(), theirs: Cost()}
                for _ in range(rounds):
                    for target, cost in costs.items():
                        await cost.measure(target, path, seconds)
                rate, bare_rate = costs[ours].rate, costs[theirs].rate
                reference = reference or rate
                met &= rate >= GOAL * bare_rate
                print(
                    f"{path:34} {count} queries  quartapp {rate:5.0f}/s  bare {bare_rate:5.0f}/s"
                    f"  ratio {rate / bare_rate:.2f}  beside {paths[0]} {rate / reference:.2f}"
                    f"{'' if rate >= GOAL * bare_rate else f'  below the goal of {GOAL}'}",
                    flush=True,
                )
            return met


async def _furnish(home: House) -> tuple[Someone, list[str]]:
    """Fill the database as that of a site in use. Return an administrator who also writes, and the
    paths of all pages."""
    member, admin = await Role.named("member"), await Role.named(ADMIN)
    assert member
    assert admin
    (author,) = await home.people("a", 1, role=admin, sessions=ROWS)
    await home.people("m", 2 * ROWS, role=member)
    by = Actor(author.user_id, author.username)
    posts = [await Post.write(f"Title {i}", "Some words. " * 30, by=by) for i in range(ROWS)]
    for number in range(ROWS):
        await Comment.write(posts[0], f"Comment {number}", by=by)

    async def inform(tx: object) -> None:
        for _ in range(ROWS):
            await notify(author.user_id, ROLE_GRANTED, tx, by="root0", role="moderator")  # type: ignore[arg-type]

    await transaction(inform)
    paths = [path.format(post=posts[0].id) for path in (*MEMBER, *ADMINISTRATION)]
    return author, paths


@dataclass(frozen=True)
class Target:
    """A server with one worker, whose process id is `process`."""

    url: str
    cookie: str
    process: int

    def processor_seconds(self) -> float:
        """Return the processor time that the worker has used so far."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """Requests, and the processor time that they took."""

    requests: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    async def measure(self, target: Target, path: str, seconds: float) -> None:
        """Send requests over CONNECTIONS keep-alive connections, and add what they cost.

        Raises AssertionError for a response other than 200.
        """
        host, port = target.url.removeprefix("http://").split(":")
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: {target.cookie}\r\n"
            "Accept: text/html\r\nUser-Agent: bench\r\n\r\n"
        ).encode()
        before, until = target.processor_seconds(), time.perf_counter() + seconds
        counts = await asyncio.gather(
            *(_ask(host, int(port), request, until) for _ in range(CONNECTIONS))
        )
        self.requests += sum(counts)
        self.seconds += target.processor_seconds() - before


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
async def bare(
    home: House, cookie: str, paths: list[str]
) -> AsyncIterator[tuple[Target, list[int]]]:
    """Run the bare application in a subprocess; yield it, and how many queries it sends for each
    path."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.bare", str(home.server.data), cookie, *paths),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        # Lines before it are the log of the application that is recorded.
        while not (line := (await process.stdout.readline()).decode()).startswith("http://"):
            assert line, "the bare application did not start"
        url, bare_cookie, queries = line.split()
        yield Target(url, bare_cookie, process.pid), [int(each) for each in queries.split(",")]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="*", help="measure only these; by default all pages")
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with this_machine():
        met = asyncio.run(main(options.seconds, options.rounds, options.path))
    sys.exit(not met)
