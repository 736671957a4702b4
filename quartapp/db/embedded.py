"""The embedded MongoDB, which is used if MONGODB_URI is not set.

It listens only on a Unix socket and keeps all files in the data folder. The processes that use it
share it: the first one starts it and the last one stops it. Each holds a file lock, which the
kernel releases when the process ends, so there is nothing to count or to clean up.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from quartapp.db import mongod_binary
from quartapp.settings import StartError

if TYPE_CHECKING:
    from pymongo import MongoClient

START_SECONDS = 30
STOP_SECONDS = 15
POLL_SECONDS = 0.05
WATCH_SECONDS = 1
MAX_SOCKET_PATH_BYTES = 107
MIN_BYTES_TO_CREATE = 500_000_000
MIN_FREE_BYTES = 16_000_000
MAX_LOG_BYTES = 5_000_000
REPLICA_SET = "quartapp"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedServer:
    """A mongod that is ready for writes."""

    uri: str
    version: str


@asynccontextmanager
async def running(data: Path) -> AsyncIterator[EmbeddedServer]:
    """Start mongod with the data folder, or use the one that is running, for the block.

    It is shared with all processes that are in such a block for the same folder, also a mongod that
    a killed server has left. If it dies during the block it is started again. The last process
    stops it at the end of the block. Raises StartError.
    """
    place = DataFolder(data)
    place.create()
    with _open_file(place.users_lock) as users:
        await _acquire_lock(users, fcntl.LOCK_SH, place)
        try:
            embedded = await _ensure_running(place)
            keeper = asyncio.create_task(_restart_when_dead(place))
            try:
                yield embedded
            finally:
                keeper.cancel()
                await asyncio.wait([keeper])
        finally:
            # The process that gets the exclusive lock is the last one. While it holds the lock, no
            # other process can start mongod.
            if _try_lock(users, fcntl.LOCK_EX):
                await _stop_mongod(place)


class DataFolder:
    """The paths of the files in one data folder. `data` is the path as given, for messages."""

    def __init__(self, data: Path) -> None:
        self.data = data
        # The socket's path is the host name of the replica set's only member, so it is absolute.
        home = data.resolve()
        self.socket = home / "mongod.sock"
        self.users_lock = home / "mongod.users"
        self.start_lock = home / "mongod.lock"
        self.log = home / "mongod.log"
        self.files = home / "mongodb"
        # mongod locks this file while it runs, and writes its process id into it.
        self.mongod_lock = self.files / "mongod.lock"

    @property
    def uri(self) -> str:
        """The MongoDB URI of the socket."""
        return f"mongodb://{quote(str(self.socket), safe='')}/?directConnection=true"

    def create(self) -> None:
        """Create the folders if they are missing.

        Raises StartError if they cannot be written to, or the path is too long for a socket.
        """
        size = len(os.fsencode(self.socket))
        if size > MAX_SOCKET_PATH_BYTES:
            raise StartError(
                f"the path {self.socket} has {size} bytes, a socket's path may have "
                f"{MAX_SOCKET_PATH_BYTES}: choose a shorter data folder"
            )
        try:
            self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.files.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StartError(
                f"cannot write to the data folder {self.data}: {error.strerror}"
            ) from None
        if not os.access(self.files, os.W_OK | os.X_OK):
            raise StartError(f"cannot write to the data folder {self.files}: no permission")

    def mongod_pid(self) -> int | None:
        """Return the process id of the mongod that runs with this folder, or None."""
        try:
            with self.mongod_lock.open("rb") as file:
                if _try_lock(file.fileno(), fcntl.LOCK_SH):
                    return None
                return int(file.read().strip() or 0) or None
        except FileNotFoundError:
            return None

    def free_bytes(self) -> int:
        """Return the free space on the disk of the folder."""
        return shutil.disk_usage(self.files).free


@contextmanager
def _open_file(path: Path) -> Iterator[int]:
    """Open the lock file, create it if needed, and close it after the block. Raises StartError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartError(f"cannot open {path}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _acquire_lock(descriptor: int, kind: int, place: DataFolder) -> None:
    """Wait for the lock. Raises StartError after START_SECONDS + STOP_SECONDS."""
    try:
        async with asyncio.timeout(START_SECONDS + STOP_SECONDS):
            while not _try_lock(descriptor, kind):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise StartError(
            f"the database in {place.data} is being started or stopped by another process, "
            "which takes too long"
        ) from None


def _try_lock(descriptor: int, kind: int) -> bool:
    """Return whether the lock was acquired; does not wait."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _ensure_running(place: DataFolder) -> EmbeddedServer:
    """Return the running mongod, or start one. Of several processes only one starts it, and the
    others wait.

    Raises StartError if it cannot be started, or is not ready in time.
    """
    with _open_file(place.start_lock) as lock:
        await _acquire_lock(lock, fcntl.LOCK_EX, place)
        return await _join_or_start(place)


async def _join_or_start(place: DataFolder) -> EmbeddedServer:
    """Start mongod unless it runs, and return it when it is ready for writes.

    Raises StartError with the reason from mongod's log if it ends, or is not ready within
    START_SECONDS.
    """
    log_from, started = _log_size(place), False
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                # A mongod that was running may just be stopping; then a new one is started.
                if not place.mongod_pid():
                    if started:
                        raise StartError(_failure_message(place, log_from, "mongod ended"))
                    log_from, started = await _start_mongod(place), True
                if version := await asyncio.to_thread(_writable_version, place):
                    return EmbeddedServer(place.uri, version)
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        late = f"mongod (process {place.mongod_pid()}) was not ready in {START_SECONDS} seconds"
        raise StartError(_failure_message(place, log_from, late)) from None


async def _start_mongod(place: DataFolder) -> int:
    """Start mongod, and return the size that its log had before.

    Returns when mongod listens, as a process that outlives this one. Renames a log that is too
    long, and removes an old socket first. Raises StartError if it cannot be run, ends (naming
    missing libraries), does not start within START_SECONDS, or the disk is too full for a new
    database.
    """
    if not (place.files / "WiredTiger").exists() and place.free_bytes() < MIN_BYTES_TO_CREATE:
        raise StartError(
            f"not enough disk space in {place.data}: the database needs "
            f"{MIN_BYTES_TO_CREATE // 1_000_000} MB, {place.free_bytes() // 1_000_000} MB are free"
        )
    if _log_size(place) > MAX_LOG_BYTES:
        place.log.replace(place.log.with_suffix(".log.1"))
    log_from = _log_size(place)
    place.socket.unlink(missing_ok=True)
    # mongod forks itself: it has to outlive the process that started it, and a Ctrl-C in the
    # terminal must not stop it before the processes that use it have finished.
    binary = await asyncio.to_thread(mongod_binary.find)
    try:
        launch = await asyncio.create_subprocess_exec(
            *[*_command(binary), "--dbpath", place.files, "--logpath", place.log],
            *["--bind_ip", place.socket, "--fork"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            umask=0o077,
        )
    except OSError as error:
        raise StartError(f"{binary} cannot be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(START_SECONDS):
            # Both take half a second, so they are done at the same time.
            await asyncio.to_thread(import_module, "pymongo")
            status = await launch.wait()
    except TimeoutError:
        launch.kill()
        await launch.wait()
        raise StartError(
            _failure_message(place, log_from, f"mongod did not start in {START_SECONDS} seconds")
        ) from None
    except asyncio.CancelledError:
        # Until it has started, `_stop_mongod` could not find it.
        async with asyncio.timeout(START_SECONDS):
            await launch.wait()
        raise
    if status != 0:
        missing = await asyncio.to_thread(mongod_binary.missing_libraries, binary)
        raise StartError(missing or _failure_message(place, log_from, "mongod ended"))
    return log_from


def _command(binary: Path) -> list[str]:
    """Return the command line of mongod, without paths of the data folder."""
    return [
        str(binary),
        *["--replSet", REPLICA_SET, "--oplogSize", "256", "--wiredTigerCacheSizeGB", "0.25"],
        # No default socket in /tmp, for which two databases would compete.
        *["--nounixsocket", "--filePermissions", "0600", "--networkMessageCompressors", "snappy"],
        *["--noscripting", "--setParameter", "diagnosticDataCollectionEnabled=false"],
        *["--logappend", "--quiet", "--journalCommitInterval", "5"],
    ]


def _writable_version(place: DataFolder) -> str | None:
    """Return the server's version if it is ready for writes, or None.

    Creates the replica set of a new database. Blocks for a few seconds at most.
    """
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    client: MongoClient[dict[str, object]] = MongoClient(
        place.uri, serverSelectionTimeoutMS=1000, connectTimeoutMS=2000, socketTimeoutMS=5000
    )
    with client:
        try:
            hello = client.admin.command("hello")
            if hello["isWritablePrimary"]:
                return client.server_info()["version"]
            if "setName" not in hello:
                _configure_replica_set(client, str(place.socket))
        except PyMongoError:
            pass  # It is still starting, electing itself or changing its configuration.
    return None


def _configure_replica_set(client: MongoClient[dict[str, object]], host: str) -> None:
    """Create the replica set with this host as its only member, or change the member's host."""
    from pymongo.errors import OperationFailure

    members = [{"_id": 0, "host": host}]
    with suppress(OperationFailure):
        client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
        return
    # The replica set exists. If the data folder was moved, its member has the old path.
    config = client.admin.command("replSetGetConfig")["config"]
    if config["members"][0]["host"] != host:
        config |= {"members": members, "version": config["version"] + 1}
        client.admin.command("replSetReconfig", config, force=True)


async def _restart_when_dead(place: DataFolder) -> None:
    """Start mongod again when it has died, for example because memory was short. Runs forever.

    It checks every WATCH_SECONDS. Logs a warning when it has started mongod again, and an error
    with the reason if that fails, once for each reason.
    """
    logged = ""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            if place.mongod_pid():
                continue
            await _ensure_running(place)
            log.warning("mongod had ended and was started again")
            logged = ""
        except (StartError, OSError) as error:
            if str(error) != logged:
                logged = str(error)
                log.error("mongod has ended: %s", logged)


async def _stop_mongod(place: DataFolder) -> None:
    """Stop mongod, wait until it has ended, and remove the socket. Sends SIGTERM, and SIGKILL after
    STOP_SECONDS.

    Written data survives SIGKILL in the journal. Does not raise if it still runs then.
    """
    for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5)):
        process = place.mongod_pid()
        if process is None:
            break
        with suppress(ProcessLookupError):
            os.kill(process, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while place.mongod_pid():  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
    place.socket.unlink(missing_ok=True)


def _failure_message(place: DataFolder, log_from: int, what: str) -> str:
    """Return one line: what happened, and the cause from mongod's log since `log_from`."""
    with suppress(OSError), place.log.open("rb") as file:
        file.seek(log_from)
        return _diagnosis(file.read(MAX_LOG_BYTES).decode(errors="replace"), place, what)
    return _diagnosis("", place, what)


def _diagnosis(output: str, place: DataFolder, what: str) -> str:
    """Return one line: what happened, and the cause that the log text gives.

    A full disk and files of another version of MongoDB are named instead of `what`. Otherwise the
    last error in the log is the cause; without one, "no reason given".
    """
    if "No space left on device" in output or place.free_bytes() < MIN_FREE_BYTES:
        return f"no space left on the disk of the data folder {place.data}"
    if re.search(r"featureCompatibilityVersion|WiredTiger version|Version incompatibility", output):
        return (
            f"the database in {place.data / 'mongodb'} was made by another version of MongoDB that "
            f"this one cannot follow: use that version; details in {place.data / place.log.name}"
        )
    reason = next(filter(None, map(_error_text, reversed(output.splitlines()))), "no reason given")
    return f"{what}: {reason}; details in {place.data / place.log.name}"


def _error_text(line: str) -> str | None:
    """Return the message of a line of mongod's log if it is an error, or None."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if entry.get("s") not in ("E", "F"):
        return None
    details = entry.get("attr", {})
    detail = next((details[key] for key in ("error", "reason", "message") if key in details), "")
    return re.sub(r"\s+", " ", f"{entry.get('msg', '')} {detail}").strip()[:300]


def _log_size(place: DataFolder) -> int:
    return place.log.stat().st_size if place.log.exists() else 0
