from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from quartapp.db import embedded, mongod_binary
from quartapp.settings import StartError

HOLDER = """
import asyncio, sys
from pathlib import Path
from quartapp.db import embedded, mongod_binary

async def main():
    async with embedded.running(Path(sys.argv[1])) as database:
        print(database.version, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def data() -> Iterator[Path]:
    """A data folder with a path short enough for a socket; its mongod is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="quartapp-"))
    try:
        yield folder / "data"
    finally:
        if (folder / "data").exists() and (process := mongod(folder / "data")):
            os.kill(process, signal.SIGKILL)
            until(lambda: not mongod(folder / "data"))
        shutil.rmtree(folder)


def mongod(data: Path) -> int | None:
    return embedded.DataFolder(data).mongod_pid()


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def client(uri: str) -> closing[MongoClient[dict[str, Any]]]:
    return closing(MongoClient(uri, serverSelectionTimeoutMS=10_000))


@contextmanager
def holder(data: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the database until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline().strip()
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_the_embedded_mongod_has_transactions_and_change_streams(data: Path) -> None:
    async with embedded.running(data) as database:
        assert re.fullmatch(r"\d+\.\d+\.\d+", database.version)
        with client(database.uri) as mongo, mongo.start_session() as session:
            things = mongo.quartapp.things
            with things.watch(max_await_time_ms=500) as changes:
                with session.start_transaction():
                    things.insert_one({"_id": 1}, session=session)
                assert next(changes)["documentKey"] == {"_id": 1}


async def test_the_embedded_mongod_listens_on_a_private_socket_only(data: Path) -> None:
    async with embedded.running(data):
        assert mode(data) == 0o700
        for name in ("mongod.sock", "mongod.log", "mongod.users", "mongod.lock"):
            assert mode(data / name) == 0o600, name
        assert listening(mongod(data)) == [str(embedded.DataFolder(data).socket)]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def listening(process: int | None) -> list[str]:
    """The addresses a process listens on, of every family."""
    told = subprocess.run(["ss", "-lnpH"], capture_output=True, text=True, check=True).stdout
    return [line.split()[4] for line in told.splitlines() if f"pid={process}," in line]


async def test_the_data_outlives_a_clean_stop(data: Path) -> None:
    async with embedded.running(data) as database:
        with client(database.uri) as mongo:
            mongo.quartapp.things.insert_one({"_id": 1})
    assert mongod(data) is None
    assert not (data / "mongod.sock").exists()
    async with embedded.running(data) as database:
        with client(database.uri) as mongo:
            assert mongo.quartapp.things.count_documents({}) == 1


async def test_a_data_folder_may_be_moved(data: Path) -> None:
    async with embedded.running(data) as database:
        with client(database.uri) as mongo:
            mongo.quartapp.things.insert_one({"_id": 1})
    moved = data.with_name("moved")
    os.rename(data, moved)
    async with embedded.running(moved) as database:
        with client(database.uri) as mongo:
            mongo.quartapp.things.insert_one({"_id": 2})
            assert mongo.quartapp.things.count_documents({}) == 2


async def test_a_killed_mongod_is_restarted_for_its_users(data: Path) -> None:
    async with embedded.running(data) as database:
        with client(database.uri) as mongo:
            mongo.quartapp.things.insert_one({"_id": 1})
            killed = mongod(data)
            assert killed
            os.kill(killed, signal.SIGKILL)
            await asyncio.to_thread(until, lambda: mongod(data) not in (None, killed))
            # It lives before it is ready.
            await asyncio.to_thread(
                until, lambda: embedded._writable_version(embedded.DataFolder(data))
            )
            assert mongo.quartapp.things.count_documents({}) == 1


async def test_files_of_killed_processes_do_not_prevent_a_start(data: Path) -> None:
    with holder(data) as process:
        process.kill()
        killed = mongod(data)
        assert killed
        os.kill(killed, signal.SIGKILL)
        until(lambda: not mongod(data))
    assert (data / "mongod.sock").exists()
    async with embedded.running(data) as database:
        with client(database.uri) as mongo:
            mongo.quartapp.things.insert_one({"_id": 1})


async def test_a_mongod_that_outlived_its_user_is_reused(data: Path) -> None:
    with holder(data) as process:
        process.kill()
        process.wait()
        survivor = mongod(data)
        assert survivor
    async with embedded.running(data):
        assert mongod(data) == survivor
    assert mongod(data) is None


async def test_the_last_of_several_users_stops_the_mongod(data: Path) -> None:
    async with embedded.running(data):
        first = mongod(data)
        with holder(data) as process:
            process.communicate()
            assert process.returncode == 0
        assert mongod(data) == first
        async with embedded.running(data):
            assert mongod(data) == first
        assert mongod(data) == first
    assert mongod(data) is None


async def test_many_users_may_start_and_stop_concurrently(data: Path) -> None:
    async def use(number: int) -> None:
        async with embedded.running(data) as database:
            with client(database.uri) as mongo:
                await asyncio.to_thread(mongo.quartapp.things.insert_one, {"_id": number})

    for round_ in range(3):
        await asyncio.gather(*(use(10 * round_ + number) for number in range(5)))
        assert mongod(data) is None


async def test_a_cancelled_start_leaves_no_mongod(data: Path) -> None:
    async def use() -> None:
        async with embedded.running(data):
            pass

    for delay in (0.01, 0.05, 0.1, 0.2):
        task = asyncio.create_task(use())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])
        assert mongod(data) is None


async def test_a_current_mongod_of_the_system_is_preferred(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = mongod_binary.find()
    mine = tmp_path / "mongod"
    mine.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && { echo "db version v8.0.4"; exit 0; }\n'
        f'touch {tmp_path}/used; exec {binary} "$@"\n'
    )
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with embedded.running(data):
        assert (tmp_path / "used").exists()


async def test_without_a_mongod_the_error_says_what_to_do(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(mongod_binary.importlib.util, "find_spec", lambda name: None)
    assert await refusal(data) == (
        "there is no MongoDB on this machine: install MongoDB 7 or newer, or set MONGODB_URI"
    )


LOADER = "{0}: error while loading shared libraries: {1}: cannot open shared object file"


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("libcurl.so.4", "apt-get install libcurl4,"),
        ("libssl.so.3", "apt-get install libssl3,"),
        ("libsomething.so.1", "install what has it,"),
    ],
)
async def test_a_missing_library_of_mongod_is_named_with_its_package(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, said: str
) -> None:
    mine = tmp_path / "mongod"
    mine.write_text(f"#!/bin/sh\necho '{LOADER.format(mine, library)}' >&2; exit 127\n")
    mine.chmod(0o755)
    monkeypatch.setattr(mongod_binary, "find", lambda: mine)
    assert await refusal(data) == f"mongod needs {library}: {said} or set MONGODB_URI"


async def test_a_mongod_for_another_kind_of_machine_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mongod"
    mine.write_bytes(b"\x7fELF of another machine")
    mine.chmod(0o755)
    monkeypatch.setattr(mongod_binary, "find", lambda: mine)
    assert await refusal(data) == f"{mine} cannot be run: Exec format error"


async def refusal(data: Path) -> str:
    with pytest.raises(StartError) as refused:
        async with embedded.running(data):
            pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def test_the_error_quotes_a_mongod_that_exits(data: Path) -> None:
    async with embedded.running(data):
        pass
    for file in (data / "mongodb").glob("WiredTiger*"):
        file.write_bytes(b"not a database")
    told = await refusal(data)
    assert told.startswith("mongod ended: ")
    assert told.endswith(f"details in {data}/mongod.log")
    assert "no reason given" not in told


async def test_a_socket_path_that_is_too_long_is_refused(data: Path) -> None:
    long = data / ("x" * 100)
    assert "a socket's path may have 107" in await refusal(long)


async def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = tmp_path / "file" / "data"
    assert await refusal(data) == f"cannot write to the data folder {data}: Not a directory"


@contextmanager
def small_disk(at: Path, megabytes: int) -> Iterator[None]:
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(at)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk to fill")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


async def test_a_disk_without_enough_space_is_refused_immediately(data: Path) -> None:
    with small_disk(data, 20):
        assert await refusal(data) == (
            f"not enough disk space in {data}: the database needs 500 MB, 20 MB are free"
        )


async def test_a_full_disk_is_named_as_the_cause(data: Path) -> None:
    with small_disk(data, 700):
        async with embedded.running(data):
            pass
        fill(data / "filler")
        assert await refusal(data) == f"no space left on the disk of the data folder {data}"


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1_000_000)):
            pass


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ('{"s":"E","msg":"x","attr":{"error":"1: No space left on device"}}', "no space left"),
        (
            '{"s":"F","msg":"Wrong mongod version","attr":{"error":"UPGRADE PROBLEM: Found an '
            'invalid featureCompatibilityVersion document"}}',
            "made by another version of MongoDB",
        ),
        ('{"s":"E","msg":"bad\\nthing","attr":{"error":"its cause"}}', "bad thing its cause;"),
        ("no json at all", "no reason given"),
    ],
)
def test_the_log_of_mongod_is_summarized_in_one_line(data: Path, log: str, told: str) -> None:
    place = embedded.DataFolder(data)
    place.create()
    line = embedded._diagnosis(log, place, "mongod ended")
    assert told in line
    assert "\n" not in line


async def test_a_dead_mongod_is_started_again_after_an_error_of_the_disk(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = iter([OSError("no space left"), None])
    again = asyncio.Event()

    async def ensure_running(place: embedded.DataFolder) -> None:
        if error := next(starts):
            raise error
        again.set()

    monkeypatch.setattr(embedded, "WATCH_SECONDS", 0)
    monkeypatch.setattr(embedded, "_ensure_running", ensure_running)
    place = embedded.DataFolder(data)
    place.create()
    keeper = asyncio.create_task(embedded._restart_when_dead(place))
    waiting = asyncio.create_task(again.wait())
    done, _ = await asyncio.wait([keeper, waiting], return_when=asyncio.FIRST_COMPLETED)
    keeper.cancel()
    waiting.cancel()
    assert waiting in done
    assert "mongod has ended: no space left" in caplog.text
