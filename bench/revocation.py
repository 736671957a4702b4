"""Measure how long a revocation takes until requests are refused, sockets closed and tabs locked.

`python -m bench.revocation` starts `quartapp serve` on a temporary folder with many signed-in
sockets. Through the administrator's pages, it revokes the access of one user after the other. With
`--role` it deletes a role that all users hold instead.

The time of the commit comes from the oplog of the database, to the millisecond. Times are given
since the commit, since the request was sent, and since its answer arrived. The exit status is 1 if
a goal is missed, a request is accepted after the answer, or a tab is closed in another way.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from bench.crowd import PER_PERSON, Caller, House, Someone, house, percentile, this_machine
from bench.tabs import Tab, now
from quartapp.models import Role
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission

WAYS = {
    "revoke a role": "/admin/users/{}/grants/crew/revoke",
    "end sessions": "/admin/users/{}/sessions/end",
    "disable": "/admin/users/{}/disable",
}
TABS = 4
# With a shorter pause, the probing itself would be most of the load on a small machine.
PROBE_EVERY = 0.005
BARRIER_GOAL, CLOSE_GOAL, ROLE_GOAL = 0.015, 0.015, 1.5
# Since the request was sent: the close frame, and the median of the answers.
CLICK_GOALS, ANSWER_GOAL = {50: 0.015, 99: 0.040}, 0.025
RECEIPT_SECONDS = 5
BARRIER = "quartapp_barrier_seconds"


@dataclass
class Times:
    """Seconds since the commit, since the request was sent and since the answer arrived.

    `noted` has the session and the time of each, until `place` is called with the commits.
    """

    since_commit: list[float] = field(default_factory=list)
    since_sending: list[float] = field(default_factory=list)
    since_answer: list[float] = field(default_factory=list)
    noted: list[tuple[str, float]] = field(default_factory=list)

    def note(self, session: str, moment: float, sent: float, answered: float) -> None:
        self.noted.append((session, moment))
        self.since_sending.append(moment - sent)
        self.since_answer.append(moment - answered)

    def place(self, commits: dict[str, float]) -> None:
        """Fill `since_commit` from the time of the commit of each session."""
        self.since_commit = [moment - commits[session] for session, moment in self.noted]


@dataclass
class Figures:
    """What all revocations together have shown.

    `asked_after` and `let_in` count the requests that began after the answer, and those of them
    that were accepted. `wrong` counts unexpected answers and closes. `missed` is the number of
    missed goals.
    """

    answers: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    refusals: Times = field(default_factory=Times)
    closes: Times = field(default_factory=Times)
    asked_after: int = 0
    let_in: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    missed: int = 0

    def goal(self, reached: float, at_most: float) -> str:
        """Return whether the goal is met, for the output; count it if it is missed."""
        self.missed += reached > at_most
        return f"goal {at_most * 1000:g}: {'met' if reached <= at_most else 'MISSED'}"


@dataclass
class Prober:
    """Requests /api/me of one worker repeatedly; `answers` has the start and status of each."""

    caller: Caller
    answers: list[tuple[float, int]] = field(default_factory=list)

    async def ask(self) -> None:
        began = now()
        status, _ = await self.caller.get("/api/me")
        self.answers.append((began, status))

    async def ask_until(self, answered: asyncio.Event) -> None:
        """Repeat until the event is set, and once more after that."""
        while not answered.is_set():
            await self.ask()
            await asyncio.sleep(PROBE_EVERY)
        await self.ask()


# ---- one user after the other


async def one_by_one(options: argparse.Namespace) -> bool:
    """Revoke one user after the other and print the times; return whether nothing went wrong."""
    figures = Figures()
    async with house(options.workers) as home, home.crowd(options.processes) as crowd:
        role = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
        idle = max(0, options.sockets - TABS)
        people = await home.people("p", -(-idle // PER_PERSON), role=role, sessions=PER_PERSON)
        victims = await home.people("v", options.revocations, role=role, sessions=TABS)
        await crowd.open([cookie for person in people for cookie in person.cookies][:idle])
        for turn, victim in enumerate(victims):
            await revoke(home, victim, list(WAYS)[turn % len(WAYS)], figures)
        numbers = await home.numbers()
        figures.wrong["sockets of other users closed"] += sum(map(bool, await crowd.codes()))
        receipts = await received(home)
        commits = await committed(home)
    for times in (figures.refusals, figures.closes):
        times.place(commits)
    print(
        f"{options.revocations} revocations, each of one user with {TABS} tabs; "
        f"{options.sockets} sockets over {options.workers} workers. Milliseconds; negative values "
        f"are before the answer.\n"
    )
    heads = ("since the commit", "since the sending", "since the answer")
    print(f"{'':24}" + "".join(f"{head:^27}" for head in heads))
    print(f"{'':24}" + f"{'p50':>9}{'p99':>9}{'worst':>9}" * 3)
    row("request refused", figures.refusals)
    row("close frame", figures.closes)
    closed = percentile(figures.closes.since_commit, 99)
    print(f"  p99 since the commit {figures.goal(closed, CLOSE_GOAL)}")
    for percent, at_most in CLICK_GOALS.items():
        closed = percentile(figures.closes.since_sending, percent)
        print(f"  p{percent} since the sending {figures.goal(closed, at_most)}")
    receipts.report()
    for way, seconds in figures.answers.items():
        met = figures.goal(statistics.median(seconds), ANSWER_GOAL)
        print(f"{f'answer: {way}':24}{cells(seconds)}  p50 {met}")
    barrier(numbers, figures)
    print(f"accepted after the answer: {figures.let_in} of {figures.asked_after}")
    return verdict(figures)


async def revoke(home: House, victim: Someone, way: str, figures: Figures) -> None:
    """Revoke the access of one user with TABS open tabs, and add what happens to the figures.

    A prober of each worker sends requests with the user's cookie all the while.
    """
    async with AsyncExitStack() as stack:
        workers = list(home.processes())
        tabs = [
            await tab_at(workers[i % len(workers)], home.server.url, cookie)
            for i, cookie in enumerate(victim.cookies)
        ]
        probers = [
            Prober(await stack.enter_async_context(home.caller(victim.cookies[0], worker)))
            for worker in workers
        ]
        root = await stack.enter_async_context(home.caller(home.root))
        token = await root.csrf_token()
        # From here on every worker has the session in its cache.
        await asyncio.gather(*(prober.ask() for prober in probers))
        over = asyncio.Event()
        probing = [asyncio.create_task(prober.ask_until(over)) for prober in probers]

        sent = now()
        status, _ = await root.post(WAYS[way].format(victim.username), {"csrf_token": token})
        answered = now()
        over.set()
        figures.answers[way].append(answered - sent)
        figures.wrong["answers"] += status != 303

        await asyncio.gather(*probing)
        for tab in tabs:
            async with asyncio.timeout(30):
                closed = await tab.moments["close"]
            figures.closes.note(tab.hello["session"], closed, sent, answered)
            figures.wrong["sockets"] += (tab.code, tab.last_message) != (4401, "session.ended")
        for prober in probers:
            refused, session = refused_from(prober.answers), tabs[0].hello["session"]
            figures.refusals.note(session, refused, sent, answered)
            after = [status for began, status in prober.answers if began > answered]
            figures.asked_after += len(after)
            figures.let_in += sum(status != 401 for status in after)


async def tab_at(worker: str, url: str, cookie: str) -> Tab:
    """Open a tab on the named worker: connect until it is that one."""
    while True:
        tab = await Tab.open(url, cookie)
        if tab.hello["worker"] == worker:
            return tab
        tab.leave()
        await tab.moments["gone"]


def refused_from(answers: list[tuple[float, int]]) -> float:
    """Return the start of the first request after which no request was accepted any more."""
    refused = float("inf")
    for began, status in reversed(answers):
        if status != 401:
            break
        refused = began
    return refused


# ---- a whole role


async def whole_role(options: argparse.Namespace) -> bool:
    """Delete the role of all users and print the times; return whether nothing went wrong."""
    figures = Figures()
    async with house(options.workers) as home, home.crowd(options.processes) as crowd:
        role = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
        count = -(-options.sockets // PER_PERSON)
        people = await home.people("p", count, role=role, sessions=PER_PERSON)
        await crowd.open(
            [cookie for person in people for cookie in person.cookies][: options.sockets]
        )
        async with home.caller(home.root) as root:
            fields = {"csrf_token": await root.csrf_token()}
            sent = now()
            status, _ = await root.post("/admin/roles/crew/delete", fields)
            answered = now()
        closes = [moment - sent for moment in await crowd.told("close")]
        figures.wrong["answers"] += status != 303
        figures.wrong["sockets"] += sum(code != 4401 for code in await crowd.codes())
        receipts = await received(home)
    print(
        f"the role of {count} users with {len(closes)} sessions and sockets is deleted; "
        f"{options.workers} workers. Milliseconds since the sending.\n"
    )
    print(f"{'answer':24}{(answered - sent) * 1000:9.0f}")
    print(f"{'first close':24}{min(closes) * 1000:9.0f}")
    print(f"{'median close':24}{statistics.median(closes) * 1000:9.0f}")
    print(f"{'last close':24}{max(closes) * 1000:9.0f}  {figures.goal(max(closes), ROLE_GOAL)}")
    receipts.report()
    return verdict(figures)


# ---- output


@dataclass
class Receipts:
    """What the audit log says about the tabs of ended sessions: the seconds that the slowest tab of
    each event took, the number of tabs, and how many acknowledged."""

    slowest: list[float]
    tabs: int
    acked: int

    def report(self) -> None:
        if self.slowest:
            print(
                f"{'receipt, slowest tab':24}{cells(self.slowest)}"
                f"  by the audit log, {self.acked} of {self.tabs} tabs"
            )


async def received(home: House) -> Receipts:
    """Read the audit log after RECEIPT_SECONDS, in which the workers write their receipts."""
    await asyncio.sleep(RECEIPT_SECONDS)
    async with home.server.database() as db:
        events = await db["receipts"].find({"receipts.0": {"$exists": True}}).to_list(None)
    receipts = [receipt for event in events for receipt in event["receipts"]]
    return Receipts(
        [max(receipt["slowest_ms"] for receipt in event["receipts"]) / 1000 for event in events],
        sum(receipt["tabs"] for receipt in receipts),
        sum(receipt["acked"] for receipt in receipts),
    )


async def committed(home: House) -> dict[str, float]:
    """Return when the end of each session was committed, by the clock of this process."""
    ahead = time.time() - now()
    ending = {"ns": "quartapp.sessions", "o.diff.u.ended_at": {"$exists": True}}
    async with home.server.database() as db:
        oplog = db.client["local"]["oplog.rs"]
        entries = await oplog.find({"o.applyOps": {"$elemMatch": ending}}).to_list(None)
    return {
        str(write["o2"]["_id"]): entry["wall"].timestamp() - ahead
        for entry in entries
        for write in entry["o"]["applyOps"]
        if write["ns"] == ending["ns"] and "ended_at" in write["o"].get("diff", {}).get("u", {})
    }


def barrier(numbers: dict[str, float], figures: Figures) -> None:
    """Print the time of the barrier. It comes from a histogram, so percentiles are upper bounds."""
    count = numbers[f"{BARRIER}_count"]
    buckets = {
        float(name.split()[1]): value
        for name, value in numbers.items()
        if name.startswith(f"{BARRIER}_bucket ")
    }
    bounds = [
        min(bound for bound, value in buckets.items() if value >= count * percent / 100)
        for percent in (50, 99)
    ]
    met = figures.goal(bounds[1], BARRIER_GOAL)
    print(
        f"{'barrier':24}{'<= %g' % (bounds[0] * 1000):>9}{'<= %g' % (bounds[1] * 1000):>9}"
        f"{numbers[f'{BARRIER}_sum'] / count * 1000:9.1f} mean  {met}"
    )


def row(name: str, times: Times) -> None:
    figures = (times.since_commit, times.since_sending, times.since_answer)
    print(f"{name:24}{''.join(map(cells, figures))}")


def cells(seconds: list[float]) -> str:
    figures = statistics.median(seconds), percentile(seconds, 99), max(seconds)
    return "".join(f"{figure * 1000:9.1f}" for figure in figures)


def verdict(figures: Figures) -> bool:
    for what, count in figures.wrong.items():
        if count:
            print(f"unexpected: {count} {what}")
    return not (figures.let_in or figures.wrong.total() or figures.missed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, help="default: 1000; with --role 5000")
    parser.add_argument("--revocations", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="that run the clients")
    parser.add_argument("--role", action="store_true", help="delete one role that all users hold")
    options = parser.parse_args()
    options.sockets = options.sockets or (5000 if options.role else 1000)
    with this_machine():
        well = asyncio.run((whole_role if options.role else one_by_one)(options))
    sys.exit(not well)


if __name__ == "__main__":
    main()
