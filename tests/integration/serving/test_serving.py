from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient
from structlog.testing import capture_logs

from quartapp import servers
from quartapp.db import embedded
from quartapp.serving import workers
from quartapp.serving.listeners import listening
from quartapp.serving.workers import ForkServerClient, WorkerSlot
from quartapp.settings import Settings, StartError
from tests import people
from tests.conftest import long
from tests.people import Stat, workers_of
from tests.people import until as eventually


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return the folder of one server, with its data in `data`."""
    with server_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def shared() -> Iterator[ServeProcess]:
    """Return a server for the tests that leave it as they found it."""
    with server_folder() as folder, server(folder) as running:
        yield running


@contextmanager
def server_folder() -> Iterator[Path]:
    """Create a folder whose path is short enough for a socket, and delete it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="quartapp-"))
    try:
        yield folder
    finally:
        if process := mongod(folder):
            os.kill(process, signal.SIGKILL)
            until(lambda: not mongod(folder))
        shutil.rmtree(folder)


def mongod(folder: Path) -> int | None:
    return embedded.DataFolder(folder / "data").mongod_pid()


def until(condition: Callable[[], object], seconds: float = 2 * people.SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "MONGODB_URI"}
    return kept | {"BCRYPT_COST": "4", "PYTHONWARNINGS": ""} | changes


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "quartapp", "serve", "--data", "data", *options]


@dataclass
class ServeProcess:
    process: subprocess.Popen[str]
    startup_line: str
    stderr: Path

    @property
    def url(self) -> str:
        found = re.search(r"http://\S+", self.startup_line)
        assert found
        return found[0]

    def workers(self) -> list[int]:
        return [process for process, _ in workers_of(self.process.pid)]

    def status(self, page: str) -> int:
        """Return the status of a page over a new connection, which any worker may answer."""
        return httpx.get(f"{self.url}{page}", timeout=20, verify=False).status_code

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


def ignore_sighup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextmanager
def server(
    folder: Path,
    *options: str,
    port: int = 0,
    stdin: int = subprocess.DEVNULL,
    nohup: bool = False,
    **changes: str,
) -> Iterator[ServeProcess]:
    errors = folder / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command("--port", str(port), *options),
            cwd=folder,
            env=environment(**changes),
            preexec_fn=ignore_sighup if nohup else None,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line, errors.read_text()
        yield ServeProcess(process, line, errors)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
        process.stdout.close()


async def failed_start(data: Path, *options: str, **changes: str) -> str:
    """Start a server that cannot start, and return the reason from the one line that it prints."""
    ran = await people.command("serve", *options, data=data, stdin=b"", **changes)
    assert (ran.status, ran.out) == (1, ""), ran
    assert ran.err.startswith("quartapp: "), ran
    assert ran.err.count("\n") == 1, ran
    return ran.err.removeprefix("quartapp: ").rstrip()


def test_the_server_prints_one_line_when_it_is_ready(shared: ServeProcess) -> None:
    assert re.fullmatch(
        r"quartapp serves http://127\.0\.0\.1:\d+ with 2 workers "
        r"on embedded MongoDB \d+\.\d+\.\d+ in data\n",
        shared.startup_line,
    )
    assert shared.status("/readyz") == 200
    assert len(shared.workers()) == 2


@pytest.fixture
def terminal() -> Iterator[int]:
    ours, theirs = os.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    "number", [long(signal.SIGTERM), signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_stops_the_workers_and_the_database(
    folder: Path, number: signal.Signals, terminal: int
) -> None:
    """SIGHUP stops a server with a terminal. Without a terminal it restarts the workers."""
    with server(folder, stdin=terminal) as running:
        workers = running.workers()
        assert (folder / "data").resolve() in servers.running()
        assert running.end(number) == 0
        assert (folder / "data").resolve() not in servers.running()
        assert not any(map(alive, workers))
        assert mongod(folder) is None
        with pytest.raises(httpx.ConnectError):
            running.status("/livez")
        assert running.stderr.read_text() == ""


DEPLOYED = {
    "QUARTAPP_ENV": "production",
    "SECRET_KEY": "x" * 32,
    "BASE_URL": "https://people.example.org",
    "BCRYPT_COST": "10",
}


def test_production_logs_json_and_drains_before_it_stops(folder: Path) -> None:
    """The server runs under nohup, on the embedded database, which a setting allows."""
    # Long enough for the requests below on a busy machine.
    drain = 4.0
    allowed = {"ALLOW_EMBEDDED_DATABASE": "true", "DRAIN_SECONDS": str(drain)}
    environment: dict[str, Any] = {**DEPLOYED, **allowed}
    with server(folder, nohup=True, **environment) as running:
        started = json.loads(running.startup_line)
        pattern = r"quartapp serves (\S+) with 2 workers on (embedded MongoDB \S+ in data)"
        found = re.fullmatch(pattern, started["said"])
        assert found
        assert (started["event"], started["workers"]) == ("server_started", 2)
        assert (started["address"], started["database"]) == found.groups()
        assert running.process.stdout
        missing = json.loads(running.process.stdout.readline())
        assert missing["event"] == "administrator_missing"
        assert missing["link"].startswith("https://people.example.org/setup/")
        url = found[1]
        assert httpx.get(f"{url}/readyz").status_code == 200
        # All pages but the health checks need the host of BASE_URL.
        assert httpx.get(f"{url}/login").status_code == 421
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        answer = httpx.get(f"{url}/login", headers={"Host": "people.example.org"})
        assert answer.status_code == 200
        assert running.process.wait(timeout=30) == 0
        assert time.monotonic() - began >= drain
        lines = [json.loads(line) for line in running.stderr.read_text().splitlines()]
        events = [line["event"] for line in lines if line["event"].startswith(("server", "sig"))]
        assert events == ["sighup_ignored", "server_stopping", "server_stopped"]


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ([], {}, "MONGODB_URI: production needs"),
        ([], {"MONGODB_URI": "mongodb://a:p/w@b"}, "MONGODB_URI: this address cannot be read"),
        (["--port", "many"], {}, "'many' is not a valid integer"),
    ],
    ids=["no database", "unreadable address", "no number"],
)
async def test_in_production_a_failed_start_logs_one_json_line(
    folder: Path, options: list[str], changes: dict[str, str], reason: str
) -> None:
    data = folder / "data"
    ran = await people.command("serve", *options, data=data, stdin=b"", **DEPLOYED, **changes)
    line = json.loads(ran.err)
    assert (ran.status, ran.out, line["event"]) == (1, "", "start_failed")
    assert reason in line["reason"]
    assert line["level"] == "error"


def alive(process: int) -> bool:
    try:
        return Stat.of(process).state != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_worker_accepts_connections(shared: ServeProcess) -> None:
    for worker in shared.workers():
        os.kill(worker, signal.SIGSTOP)
        try:
            answers: set[bool] = set()
            # The kernel chooses a worker for each connection, and one of them is stopped.
            until(lambda: answers.add(answers_soon(shared.url)) or len(answers) == 2)  # noqa: B023
        finally:
            os.kill(worker, signal.SIGCONT)


def answers_soon(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", timeout=0.5, verify=False).status_code == 200
    except httpx.TimeoutException:
        return False


def test_a_killed_worker_is_replaced_and_no_request_fails(folder: Path) -> None:
    with server(folder) as running:
        first, second = running.workers()
        os.kill(first, signal.SIGKILL)
        assert [running.status("/livez") for _ in range(20)] == [200] * 20
        until(lambda: len(running.workers()) == 2)
        # The heartbeat of the dead worker has been deleted.
        with MongoClient[dict[str, object]](embedded.DataFolder(folder / "data").uri) as client:
            heartbeats = client["quartapp"]["workers"]
            until(lambda: heartbeats.count_documents({}) == 2)
            until(lambda: heartbeats.count_documents({"beat": {"$gte": 3}}) == 2)
            assert heartbeats.count_documents({}) == 2
        assert second in running.workers()
        assert first not in running.workers()
        assert "worker_died" in running.stderr.read_text()


def test_workers_survive_the_fork_server_and_are_replaced_without_it(
    folder: Path,
) -> None:
    with server(folder) as running:
        first, second = running.workers()
        forked_by = Stat.of(first).parent
        # The fork server ignores SIGTERM, which may be sent to all processes of a server.
        os.kill(forked_by, signal.SIGTERM)
        assert Stat.of(first).parent == forked_by
        os.kill(forked_by, signal.SIGKILL)
        until(lambda: Stat.of(first).parent != forked_by)
        os.kill(first, signal.SIGKILL)
        assert [running.status("/livez") for _ in range(20)] == [200] * 20
        until(running.workers)
        (third,) = running.workers()
        assert Stat.of(third).parent not in (forked_by, running.process.pid)
        assert alive(second)
        assert running.end() == 0
        assert not any(map(alive, (second, third)))
        log = running.stderr.read_text()
        assert log.count("worker_died") == 1
        assert "Traceback" not in log


def test_a_rolling_restart_starts_a_new_fork_server(folder: Path) -> None:
    with server(folder) as running:
        old = running.workers()
        forked_by = Stat.of(old[0]).parent
        running.process.send_signal(signal.SIGHUP)
        until(lambda: "renewal_done" in running.stderr.read_text())
        new = running.workers()
        assert len(new) == 2
        assert {Stat.of(worker).parent for worker in new} == {Stat.of(new[0]).parent} != {forked_by}
        until(lambda: not any(map(alive, (*old, forked_by))))
        assert running.status("/readyz") == 200
        assert running.end() == 0
        log = running.stderr.read_text()
        assert "Traceback" not in log
        assert "Warning" not in log


def test_workers_exit_with_the_launcher_and_the_database_is_reused(
    folder: Path,
) -> None:
    with server(folder) as running:
        workers = running.workers()
        running.end(signal.SIGKILL)
        until(lambda: not any(map(alive, workers)))
        survivor = mongod(folder)
        assert survivor
    with server(folder, port=int(running.url.rpartition(":")[2])) as next_one:
        assert mongod(folder) == survivor
        assert next_one.status("/readyz") == 200
    assert mongod(folder) is None


async def test_a_second_server_on_the_same_data_is_refused(shared: ServeProcess) -> None:
    data = shared.stderr.with_name("data")
    assert await failed_start(data, "--port", "0") == f"another quartapp serves from {data} already"
    assert shared.status("/readyz") == 200


async def test_a_port_in_use_is_refused(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert await failed_start(folder / "data", "--port", str(port)) == (
            f"port {port} on 127.0.0.1 is in use: choose another --port"
        )


async def test_the_port_of_another_server_is_not_shared(folder: Path, shared: ServeProcess) -> None:
    port = shared.url.rpartition(":")[2]
    reason = await failed_start(folder / "data", "--port", port)
    assert reason == f"port {port} on 127.0.0.1 is in use: choose another --port"


async def test_development_refuses_other_addresses_than_loopback(folder: Path) -> None:
    reason = await failed_start(folder / "data", "--host", "0.0.0.0")
    assert "development serves this machine alone" in reason


async def test_an_unreachable_database_is_reported_in_one_line(folder: Path) -> None:
    with socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        uri = f"mongodb://127.0.0.1:{not_listening.getsockname()[1]}/?serverSelectionTimeoutMS=500"
        assert await failed_start(folder / "data", "--port", "0", MONGODB_URI=uri)


def test_a_signal_during_the_start_leaves_no_process(folder: Path) -> None:
    with subprocess.Popen(
        command("--port", "0"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL
    ) as process:
        until(lambda: (folder / "data" / "mongod.log").exists())
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert mongod(folder) is None


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(scope="module")
async def fork_server() -> AsyncIterator[ForkServerClient]:
    """Return a fork server whose workers run the code that `running` puts into their environment.

    It imports the application, which takes longer than most of these tests, so they share it.
    """
    with server_folder() as folder, pytest.MonkeyPatch.context() as patch:
        script = folder / "fork_server"
        script.write_text(
            f"#!{sys.executable}\n"
            "import os, signal, socket, sys, time\n"
            "from quartapp.serving import fork_server, worker_process\n"
            "def run(listener, lifeline):\n"
            "    exec(os.environ['WORKER_CODE'], {**globals(), **locals()})\n"
            "worker_process.run = run\n"
            "sys.exit(fork_server.main(socket.socket(fileno=int(sys.argv[3]))))\n"
        )
        script.chmod(0o755)
        patch.setattr(sys, "executable", str(script))
        fork_server = await ForkServerClient.start()
        patch.undo()
        yield fork_server
        await fork_server.close()


def worker_running(code: str) -> dict[str, str]:
    """Return the environment of a worker that runs the code, which can use `listener` and
    `lifeline`."""
    return {"WORKER_CODE": code}


async def test_a_worker_that_exits_at_once_fails_the_start(
    fork_server: ForkServerClient, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerSlot(0, fork_server, listener, worker_running("sys.exit(3)"), asyncio.Event())
    with pytest.raises(StartError, match="a worker could not start"):
        await worker.keep_alive()


async def test_a_worker_that_is_not_ready_in_time_fails_the_start(
    fork_server: ForkServerClient, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first fork waits for the imports, which would take longer than the time limit below.
    sleeps = worker_running("time.sleep(60)")
    first = await fork_server.fork(listener, {"QUARTAPP_WORKER": "0", **sleeps})
    assert first
    assert await first.kill() == -signal.SIGKILL
    monkeypatch.setattr(workers, "READY_SECONDS", 0.5)
    with pytest.raises(StartError, match="a worker could not start"):
        await WorkerSlot(0, fork_server, listener, sleeps, asyncio.Event()).keep_alive()


@pytest.mark.parametrize(
    ("task", "reason"),
    [("prepare", "^MONGODB_URI: write an address"), ("unknown", "failed, it says why above$")],
)
async def test_a_failing_task_of_the_launcher_raises_its_reason(
    fork_server: ForkServerClient, folder: Path, task: str, reason: str
) -> None:
    environment = {"MONGODB_URI": "elsewhere", "QUARTAPP_DATA": str(folder)}
    with pytest.raises(StartError, match=reason):
        await fork_server.run_task(task, environment)


@asynccontextmanager
async def kept_alive(
    fork_server: ForkServerClient, code: str, *listeners: socket.socket
) -> AsyncIterator[list[WorkerSlot]]:
    slots = [
        WorkerSlot(i, fork_server, each, worker_running(code), asyncio.Event())
        for i, each in enumerate(listeners)
    ]
    tasks = [asyncio.create_task(slot.keep_alive()) for slot in slots]
    try:
        yield slots
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def answering_workers(port: int) -> set[bytes]:
    """Return the names of the workers that answer twenty connections."""
    answered = set()
    async with asyncio.timeout(10):
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answered.add(await reader.read())
            writer.close()
    return answered


async def both_workers_answer(port: int) -> bool:
    return await answering_workers(port) == {b"0", b"1"}


async def was_paused(logs: list[MutableMapping[str, Any]], times: int = 1) -> bool:
    return [line["event"] for line in logs].count("worker_paused") >= times


async def test_connections_of_a_crashing_worker_go_to_the_other_worker(
    folder: Path, fork_server: ForkServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired = folder / "repaired"
    code = (
        "listener = socket.socket(fileno=listener)\n"
        "listener.listen()\n"
        "lifeline.send(b'ready\\n')\n"
        "name = os.environ['QUARTAPP_WORKER'].encode()\n"
        f"while name == b'1' or os.path.exists({str(repaired)!r}):\n"
        "    with listener.accept()[0] as line: line.send(name)"
    )
    monkeypatch.setattr(workers, "EXITS_PER_MINUTE", 1)
    with (
        listening(Settings.load(data=folder), "127.0.0.1", 0, 2) as listeners,
        capture_logs() as logs,
    ):
        port = listeners[0].getsockname()[1]
        async with kept_alive(fork_server, code, *listeners) as (crashing, healthy):
            await eventually(lambda: was_paused(logs))
            await healthy.started.wait()
            assert await answering_workers(port) == {b"1"}
            repaired.touch()
            assert await crashing.start_successor(fork_server)
            await crashing.hand_over(fork_server)
            await eventually(lambda: both_workers_answer(port))


async def test_a_paused_worker_is_started_again_after_a_minute(
    fork_server: ForkServerClient, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "EXITS_PER_MINUTE", 0)
    monkeypatch.setattr(workers, "MINUTE", minute := 1.0)
    began = time.monotonic()
    with capture_logs() as logs:
        async with kept_alive(fork_server, "lifeline.send(b'ready\\n')", listener):
            await eventually(lambda: was_paused(logs, times=2))
    assert time.monotonic() - began >= minute


@pytest.mark.parametrize("immediately", [False, True], ids=["after the grace time", "at once"])
async def test_a_worker_that_ignores_sigterm_is_killed(
    folder: Path,
    fork_server: ForkServerClient,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    immediately: bool,
) -> None:
    code = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(folder / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "lifeline.send(b'ready\\n')\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(workers, "GRACE_SECONDS", 60 if immediately else 0.5)
    stop_now = asyncio.Event()
    worker = WorkerSlot(0, fork_server, listener, worker_running(code), stop_now)
    task = asyncio.create_task(worker.keep_alive())
    await worker.started.wait()
    task.cancel()
    if immediately:
        stop_now.set()
    async with asyncio.timeout(10):
        await asyncio.wait([task])
    assert task.cancelled()
    assert listener.fileno() == -1
    assert not alive(int((folder / "pid").read_text()))
