"""How long after a revocation was answered its sockets are closed, and whether anybody got in.

Starts `quartapp serve` on a folder of its own, signs people in with sockets on every worker, and
takes their authority away by the administrator's pages, one person after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests.conftest import PASSWORD, serving
from tests.people import Person, Tab

PROBES = 8
Closes = asyncio.Task[tuple[int, str, float]]
# Each page, and another by which what it took is given back for the next round.
PAGES = {
    "revoke a role": ("/admin/users/{}/grants/member/revoke", "/admin/users/{}/grants"),
    "end sessions": ("/admin/users/{}/sessions/end", None),
    "disable": ("/admin/users/{}/disable", "/admin/users/{}/enable"),
}


@dataclass
class Figures:
    """Milliseconds from the answer of the revoking request, and from its sending."""

    since_answer: list[float] = field(default_factory=list)
    since_sending: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    let_in: int = 0
    probes: int = 0
    wrong: int = 0


async def measure(count: int, people: int, sockets: int, workers: int) -> dict[str, Figures]:
    figures = {name: Figures() for name in PAGES}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with (
            serving(Path(folder) / "d", workers=workers) as server,
            Person(server.url, "root", PASSWORD) as root,
            AsyncExitStack() as stack,
        ):
            await server.run(
                *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
            )
            await root.sign_in()
            crowd = [
                await stack.enter_async_context(Person(server.url, f"p{i}", PASSWORD))
                for i in range(people)
            ]
            for person in crowd:
                await person.register()
            # Everybody is on all the while; the one whose turn it is loses what they have.
            closes = {p.username: await on(p, sockets, workers, stack) for p in crowd}
            for turn in range(count):
                person = crowd[turn % people]
                name = list(PAGES)[turn % len(PAGES)]
                await revoke(root, person, name, closes[person.username], figures[name])
                back = PAGES[name][1]
                if back:
                    await root.post(back.format(person.username), role="member")
                await person.sign_in()
                closes[person.username] = await on(person, sockets, workers, stack)
            for close in itertools.chain(*closes.values()):
                close.cancel()
    return figures


async def on(person: Person, sockets: int, workers: int, stack: AsyncExitStack) -> list[Closes]:
    """Opens so many pages of the person, that are listened to from now on."""
    tabs = [
        await stack.enter_async_context(person.tab(worker=str(i % workers))) for i in range(sockets)
    ]
    return [asyncio.create_task(closed(tab)) for tab in tabs]


async def closed(tab: Tab) -> tuple[int, str, float]:
    """The code, the last words, and when they came."""
    code = await tab.closed(within=3600)
    return code, tab.said[-1]["type"], time.perf_counter()


async def revoke(
    root: Person, person: Person, name: str, closes: list[Closes], figures: Figures
) -> None:
    path = PAGES[name][0].format(person.username)
    # The form's token is fetched beforehand: only the revoking request is measured.
    data = {"csrf_token": await root.csrf_token("/")}
    sent = time.perf_counter()
    answer = await root.client.post(path, data=data, headers={"Origin": root.url})
    answered = time.perf_counter()
    probes = await asyncio.gather(*(person.status("/api/me") for _ in range(PROBES)))
    for code, reason, moment in await asyncio.gather(*closes):
        figures.since_answer.append((moment - answered) * 1000)
        figures.since_sending.append((moment - sent) * 1000)
        figures.wrong += (code, reason) != (4401, "session.ended")
    figures.answers.append((answered - sent) * 1000)
    figures.probes += PROBES
    figures.let_in += sum(status != 401 for status in probes)
    figures.wrong += answer.status_code != 303


def report(figures: dict[str, Figures], arguments: argparse.Namespace) -> None:
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("quart", "hypercorn", "motor", "beanie"))
    )
    print(
        f"{arguments.count} revocations, {arguments.people} people on, each with "
        f"{arguments.sockets} sockets over {arguments.workers} workers. Milliseconds to the close "
        "frame at the client; negative is before the answer."
    )
    print(f"\n{'':16}{'since the answer':^27}{'since the sending':^27}{'answer':>8}  let in")
    columns = f"{'median':>9}{'p99':>9}{'worst':>9}"
    print(f"{'':16}{columns}{columns}{'median':>8}")
    everything = Figures()
    for name, one in figures.items():
        row(name, one)
        everything.since_answer += one.since_answer
        everything.since_sending += one.since_sending
        everything.answers += one.answers
        everything.let_in += one.let_in
        everything.probes += one.probes
        everything.wrong += one.wrong
    row("all", everything)
    if everything.wrong:
        print(f"\n{everything.wrong} sockets or answers were not as they should be")
    sys.exit(bool(everything.let_in or everything.wrong))


def row(name: str, one: Figures) -> None:
    if not one.since_answer:
        return
    cells = "".join(
        f"{statistics.median(ms):9.1f}{percentile(ms, 99):9.1f}{max(ms):9.1f}"
        for ms in (one.since_answer, one.since_sending)
    )
    print(f"{name:16}{cells}{statistics.median(one.answers):8.1f}  {one.let_in} of {one.probes}")


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="how often to revoke")
    parser.add_argument("--people", type=int, default=10, help="how many are signed in")
    parser.add_argument("--sockets", type=int, default=4, help="of each person")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    figures = asyncio.run(
        measure(arguments.count, arguments.people, arguments.sockets, arguments.workers)
    )
    report(figures, arguments)


if __name__ == "__main__":
    main()
