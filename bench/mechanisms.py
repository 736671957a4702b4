"""What each optimisation gains: the application with it and without it, in one run.

- `python -m bench.mechanisms page`: processor time of the worker for each request of a signed-in
  page and of `/api/me`.
- `python -m bench.mechanisms sockets`: everybody's role is deleted, so that all sockets are closed.
  Time until the median and the last close frame, and processor time of the workers for each socket.
- `python -m bench.mechanisms workers --count 2`: the time until the server is ready, the memory of
  its processes, and the longest answer after a worker was killed.

Each prints the medians over `--rounds`, and of the ratios without/with of each round: above 1, the
mechanism gains. Processor time is what the kernel counted, so that it matters little what else runs
on the machine; for the other times it does. Name mechanisms to measure only these.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from quart.templating import Environment
from quart_auth import QuartAuth

from bench.crowd import PER_PERSON, house, this_machine
from bench.tabs import now
from quartapp.auth.current_user import QuartAuthExtension
from quartapp.models import Role
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from quartapp.routes import templating
from quartapp.serving import hypercorn_latency, worker_process, workers
from tests.conftest import PASSWORD, serving
from tests.people import Person, Server, workers_of

Figures = dict[str, float]

# ---- how to run without a mechanism: each is called in the launcher, before it forks anything


def without_plain_templates() -> None:
    """Templates compiled to coroutines, as Quart has them."""
    templating.Environment.__init__ = Environment.__init__  # type: ignore[method-assign]
    templating.Environment.template_class = jinja2.Template


def without_coroutine_context() -> None:
    """Quart-Auth's template context as a plain function, which Quart runs in a thread."""
    QuartAuthExtension._template_context = QuartAuth._template_context  # type: ignore[method-assign]


def without_uvloop() -> None:
    worker_process.uvloop = asyncio  # type: ignore[assignment]


def without_single_idle_task() -> None:
    for name in ("protocol_send", "_idle_timeout"):
        delattr(hypercorn_latency.FastServerConnection, name)


def without_direct_channel() -> None:
    hypercorn_latency.DIRECT_CHANNEL = "unused"


def without_teardown_scheduler() -> None:
    hypercorn_latency.TeardownScheduler.postpone = lambda _: None  # type: ignore[method-assign]


def without_freed_cycles() -> None:
    """Reference cycles left to the garbage collector, with its own thresholds."""
    delattr(hypercorn_latency.FastServerConnection, "run")
    worker_process.gc = _UntunedCollector()  # type: ignore[assignment]


class _UntunedCollector:
    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


def without_fork_server() -> None:
    """A new interpreter for each worker."""

    async def fork(
        _: object, listener: socket.socket, environment: Mapping[str, str]
    ) -> workers.WorkerProcess:
        lifeline, theirs = socket.socketpair()
        ends = await asyncio.open_connection(sock=lifeline)
        files = (listener.fileno(), theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            # The shell is the parent of the worker, as the fork server would be.
            *("sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", INTERPRETER),
            *map(str, files),
            pass_fds=files,
            env={**os.environ, **environment},
        )
        theirs.close()
        pid = int(await ends[0].readline())
        del process
        return workers.WorkerProcess(pid, environment["PROMETHEUS_MULTIPROC_DIR"], ends)

    async def nothing() -> None:
        pass

    def fork_here() -> workers.ForkServerClient:
        return workers.ForkServerClient(socket.socketpair()[0], nothing)

    workers.ForkServerClient.fork = fork  # type: ignore[method-assign]
    workers.ForkServerClient.fork_here = fork_here  # type: ignore[method-assign]


INTERPRETER = """
import os, pathlib, socket, sys
from quartapp.serving import worker_process
lifeline = socket.socket(fileno=int(sys.argv[2]))
lifeline.sendall(b"%d\\n" % os.getpid())
pathlib.Path("/proc/self/comm").write_text(f"worker-{os.environ['QUARTAPP_WORKER']}")
sys.exit(worker_process.run(int(sys.argv[1]), lifeline))
"""

# The settings for a variant, and what to call for it.
Variant = tuple[dict[str, str], Callable[[], object]]
NOTHING: Callable[[], object] = partial(bool)
WITH: Variant = ({}, NOTHING)
FAST_PATH: Variant = ({"FAST_PATH": "off"}, NOTHING)
PAGE: dict[str, Variant] = {
    "plain templates": ({}, without_plain_templates),
    "coroutine context": ({}, without_coroutine_context),
    "uvloop": ({}, without_uvloop),
    "single idle task": ({}, without_single_idle_task),
    "principal cache": ({"PRINCIPALS_PER_WORKER": "0"}, NOTHING),
    "fast path": FAST_PATH,
}
SOCKETS: dict[str, Variant] = {
    "direct channel": ({}, without_direct_channel),
    "teardown scheduler": ({}, without_teardown_scheduler),
    "freed cycles": ({}, without_freed_cycles),
    "uvloop": ({}, without_uvloop),
    "fast path": FAST_PATH,
}
WORKERS: dict[str, Variant] = {"fork server": ({}, without_fork_server)}

REQUESTS = 100


# ---- a page


async def page(variants: dict[str, Variant], rounds: int, _: int) -> dict[str, list[Figures]]:
    found: dict[str, list[Figures]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        people: dict[str, tuple[Server, Person]] = {}
        for name, (env, before_start) in variants.items():
            serve = serving(
                folder / name.replace(" ", "-"), workers=1, before_start=before_start, **env
            )
            server = await stack.enter_async_context(serve)
            ada = await stack.enter_async_context(Person(server.url, "ada", PASSWORD))
            await ada.register()
            # The welcome is shown once.
            await ada.get("/")
            people[name] = server, ada
        for number in range(rounds + 1):
            for name, (server, ada) in random.sample(list(people.items()), len(people)):
                figures = {
                    f"{path}, microseconds": await processor_time_of_requests(server, ada, path)
                    for path in ("/account/password", "/api/me")
                }
                # The first round warms up.
                if number:
                    found[name].append(figures)
    return found


async def processor_time_of_requests(server: Server, person: Person, path: str) -> float:
    """Microseconds of the worker for each request. Every answer is 200."""
    host, port = server.url.removeprefix("http://").split(":")
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: {person.cookies()}\r\n"
        "Accept: text/html\r\nUser-Agent: bench\r\n\r\n"
    ).encode()

    # One connection: how many requests one turn of the event loop handles would depend on the load.
    reader, writer = await asyncio.open_connection(host, int(port))
    before = processor_time(server)
    for _ in range(REQUESTS):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    used = processor_time(server) - before
    writer.close()
    return used / REQUESTS * 1e6


def processor_time(server: Server) -> float:
    """Seconds that the workers have run for so far, in all their threads."""
    return (
        sum(
            int(stat.read_text().split()[0])
            for pid, _ in workers_of(server.process.pid)
            for stat in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )
        / 1e9
    )


# ---- the end of many sockets


async def sockets(
    variants: dict[str, Variant], rounds: int, count: int
) -> dict[str, list[Figures]]:
    found: dict[str, list[Figures]] = defaultdict(list)
    for _ in range(rounds):
        for name, (env, before_start) in variants.items():
            found[name].append(await end_of_sockets(count, before_start=before_start, **env))
            print(f"{name}: {found[name][-1]}", file=sys.stderr)
    return found


async def end_of_sockets(count: int, **env: Any) -> Figures:
    async with house(2, **env) as home, home.crowd(2) as crowd:
        role = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
        people = await home.people("p", -(-count // PER_PERSON), role=role, sessions=PER_PERSON)
        await crowd.open([cookie for person in people for cookie in person.cookies][:count])
        async with home.caller(home.root) as root:
            fields = {"csrf_token": await root.csrf_token()}
            before, sent = processor_time(home.server), now()
            status, _ = await root.post("/admin/roles/crew/delete", fields)
            assert status == 303
        closes = [moment - sent for moment in await crowd.told("close")]
        assert set(await crowd.codes()) == {4401}
        await home.emptied()
        used = processor_time(home.server) - before
    return {
        "median close, ms": statistics.median(closes) * 1000,
        "last close, ms": max(closes) * 1000,
        "processor, microseconds": used / count * 1e6,
    }


# ---- workers


async def start(variants: dict[str, Variant], rounds: int, count: int) -> dict[str, list[Figures]]:
    found: dict[str, list[Figures]] = defaultdict(list)
    for _ in range(rounds):
        for name, (env, before_start) in variants.items():
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                began = time.monotonic()
                async with serving(
                    Path(folder) / "d", workers=count, before_start=before_start, **env
                ) as server:
                    ready = time.monotonic() - began
                    async with Person(server.url, "ada", PASSWORD) as ada:
                        await ada.register()
                        await asyncio.gather(*(ada.status("/account") for _ in range(20 * count)))
                        used = memory(server)
                        os.kill(server.worker("0"), signal.SIGKILL)
                        killed = time.monotonic()
                        # About half of these connections wait for the next process of the worker.
                        await asyncio.gather(*(ada.status("/livez") for _ in range(8 * count)))
                        waited = time.monotonic() - killed
                    found[name].append(
                        {
                            "ready, ms": ready * 1000,
                            "memory of all processes, MiB": used / 2**20,
                            "longest answer after a worker was killed, ms": waited * 1000,
                        }
                    )
    return found


def memory(server: Server) -> int:
    """Bytes of the launcher and all processes below it but mongod; shared ones counted once."""
    tree = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in tree.stdout.splitlines()]
    ours = {server.process.pid}
    for _ in range(3):
        ours |= {
            int(pid) for pid, parent, name in rows if int(parent) in ours and "mongod" not in name
        }
    return sum(pss(pid) for pid in ours)


def pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.split("\nPss:")[1].split()[0]) * 1024


# ---- what is printed


def report(found: dict[str, list[Figures]]) -> None:
    base = found.pop("with")
    for figure in base[0]:
        middle = statistics.median(each[figure] for each in base)
        print(f"\n{figure}\n{'with all':24}{middle:10.0f}")
        for name, rounds in found.items():
            ratios = [
                mine[figure] / theirs[figure] for mine, theirs in zip(rounds, base, strict=True)
            ]
            low, high = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2
            print(
                f"{'without ' + name:28}{statistics.median(r[figure] for r in rounds):10.0f}"
                f"   without/with {statistics.median(ratios):5.2f}, half of the rounds"
                f" {low:.2f} to {high:.2f}"
            )


def main() -> None:
    kinds = {"page": (page, PAGE), "sockets": (sockets, SOCKETS), "workers": (start, WORKERS)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("names", nargs="*", metavar="mechanism")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--count", type=int, default=2000, help="sockets, or workers")
    options = parser.parse_args()
    measure, known = kinds[options.kind]
    chosen = {name: known[name] for name in options.names or known}
    with this_machine():
        report(asyncio.run(measure({"with": WITH, **chosen}, options.rounds, options.count)))


if __name__ == "__main__":
    main()
