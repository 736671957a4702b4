"""Fixtures: a mongod, the application in this process, and servers in processes of their own."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet
from hypercorn.asyncio import serve
from hypercorn.config import Config
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from quart import Quart

from quartapp.db import embedded, mongo
from quartapp.settings import Settings
from tests.application import Shared, empty, share_compiled_templates
from tests.people import SECONDS, BeforeStart, Person, Running, Server
from tests.query_plans import Checker, Recorder

# PyMongo gives the listener only to clients that are created later.
RECORDER = Recorder()
RECORDER.install()

PASSWORD = "correct horse battery staple"


# The slowest files, the slowest first. If one started last, it would run alone at the end.
LONGEST = (
    "tests/integration/flows/test_issues_of_other_projects.py",
    "tests/integration/flows/test_ending_sessions.py",
    "tests/integration/serving/test_serving.py",
    "tests/faults/test_partition.py",
    "tests/integration/flows/test_restarts_and_disconnects.py",
    "tests/faults/test_change_stream.py",
    "tests/faults/test_replica_set.py",
    "tests/faults/test_hostile_sockets.py",
    "tests/faults/test_clocks.py",
    "tests/faults/test_database_outage.py",
    "tests/integration/flows/test_socket_limits.py",
    "tests/integration/cli/test_alone.py",
    "tests/faults/test_failing_writes.py",
    "tests/browser/test_drafts.py",
    "tests/browser/test_privacy.py",
    "tests/browser/test_receipts.py",
    "tests/browser/test_accessibility.py",
    "tests/browser/test_live_pages.py",
    "tests/browser/test_reauthentication.py",
    "tests/integration/flows/test_permission_changes.py",
    "tests/integration/flows/test_receipts.py",
)


def long(value: object) -> ParameterSet:
    """Return the value as a parameter with which a test runs in its long form only."""
    return pytest.param(value, marks=pytest.mark.long)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests so that those files come first, then the others that use real servers.

    Tests in tests/faults get the marker `fault`.
    """
    for item in items:
        if item.nodeid.startswith("tests/faults/"):
            item.add_marker("fault")
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    servers = (
        "tests/browser/",
        "tests/integration/flows/",
        "tests/faults/",
        "tests/integration/cli/",
    )

    def rank(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return ranks.get(file, len(ranks) + (not file.startswith(servers)))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def signals() -> None:
    """Handle SIGINT and SIGHUP where they are ignored, as under nohup.

    A server that a test starts would inherit an ignored signal, but it does not inherit a handler.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def compiled_templates() -> None:
    """Make the applications of this process share compiled templates."""
    share_compiled_templates()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Check the plans of the queries that the application sent for the first time in this test, and
    that it changed no entry of the audit log."""
    yield
    if writes := RECORDER.take_writes():
        pytest.fail("\n".join(writes), False)
    if faults := Checker.faults(RECORDER.take()):
        pytest.fail("queries that get slower as collections grow:\n" + "\n".join(faults), False)


@pytest.fixture(scope="session")
def memory_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder for databases: in memory if that has room for several, else on the disk.

    Each change waits until the database has written it, which takes longer on a busy disk.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 6 * 1024**3:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="session")
async def mongod(memory_folder: Path) -> AsyncIterator[str]:
    """Return the URI of a mongod, which is stopped at the end of the test session."""
    async with embedded.running(memory_folder / "db") as mongod:
        Checker.use(mongod.uri)
        yield mongod.uri
        Checker.use(None)


@pytest.fixture(scope="session")
async def client(mongod: str) -> AsyncIterator[AsyncMongoClient[Any]]:
    """Return a client of that mongod, besides the one of the application."""
    async with AsyncMongoClient[Any](mongod) as client:
        yield client


@pytest.fixture(scope="session")
async def _shared(client: AsyncMongoClient[Any], _settings: Settings) -> AsyncIterator[Shared]:
    shared = Shared(client["test"], _settings.data)
    yield shared
    await shared.close()


@pytest.fixture(scope="session")
def _settings(mongod: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings.load(
        mongodb_uri=SecretStr(mongod),
        mongodb_db="test",
        data=tmp_path_factory.mktemp("data"),
        # The packaged mongod, also where a test has the application run as in production.
        allow_old_mongodb=True,
        bcrypt_cost=4,
        bcrypt_threads=2,
        live_ping_seconds=1,
        live_sweep_seconds=1,
    )


@pytest.fixture(autouse=True)
async def _stop_shared(request: pytest.FixtureRequest) -> None:
    """Stop the shared application before a test that does not use it."""
    if "shared" not in request.fixturenames:
        await Shared.stop()


@pytest.fixture
async def settings(
    _settings: Settings, client: AsyncMongoClient[Any], request: pytest.FixtureRequest
) -> Settings:
    """Return settings for the database of the tests.

    It is empty, unless the test also uses one of the fixtures `app` and `db`, which prepare it.
    """
    if "shared" not in request.fixturenames:
        await empty(client["test"], _settings.data)
    return _settings


@pytest.fixture
async def unprepared(_settings: Settings, client: AsyncMongoClient[Any]) -> AsyncIterator[Settings]:
    """Return settings for a database that does not exist yet."""
    yield _settings.model_copy(update={"mongodb_db": "unprepared"})
    await client.drop_database("unprepared")


@pytest.fixture
def shared(_shared: Shared) -> Shared:
    """Return the holder of the application that the tests of this process share."""
    return _shared


@pytest.fixture
async def db(shared: Shared, settings: Settings) -> mongo.Database:
    """Return a prepared database without accounts, to which the documents are bound."""
    return await shared.connection(settings)


@pytest.fixture
async def app(shared: Shared, settings: Settings) -> Quart:
    """Return the started application. Its database is prepared and has no accounts."""
    return await shared.app(settings)


@asynccontextmanager
async def serving(
    data: Path, *, workers: int = 2, before_start: BeforeStart | None = None, **env: str
) -> AsyncIterator[Server]:
    """Run `quartapp serve` on a free port, with a launcher, workers and an embedded mongod."""
    (folder := data.with_name(f"{data.name}.streams")).mkdir()
    launcher = Running(
        *("serve", "--port", "0", "--workers", str(workers), "--data", str(data)),
        folder=folder,
        env={
            "LIVE_PING_SECONDS": "2",
            "LIVE_SWEEP_SECONDS": "2",
            # All users of the tests have the same IP address.
            "LIMIT_REGISTRATION": "100000 per hour",
            "LIMIT_SIGN_IN_ADDRESS": "100000 per hour",
            "LIMIT_HANDSHAKE_USER": "100000 per hour",
            "LIMIT_HANDSHAKE_ADDRESS": "100000 per hour",
            **env,
        },
        before_start=before_start,
    )
    await launcher.start()
    try:
        line = await launcher.line(within=40)
        assert line.startswith("quartapp serves "), launcher.err
        yield Server(line.split()[2], data, launcher, line)
    finally:
        launcher.send_signal(signal.SIGTERM)
        await launcher.end()


@asynccontextmanager
async def serving_in_process(
    app: Any, *, over: asyncio.Event, **settings: Any
) -> AsyncIterator[tuple[str, int]]:
    """Run hypercorn in this process, and yield its host and port.

    It shuts down when `over` is set, which the end of the context does.
    """
    config, listener = Config(), socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    # hypercorn closes the descriptor.
    config.bind = [f"fd://{listener.detach()}"]
    for name, value in settings.items():
        setattr(config, name, value)
    server = asyncio.create_task(serve(app, config, shutdown_trigger=over.wait))
    try:
        yield address
    finally:
        over.set()
        async with asyncio.timeout(SECONDS):
            await server


@pytest.fixture(scope="session")
async def server(memory_folder: Path) -> AsyncIterator[Server]:
    """Return a server with two workers and an administrator `root`.

    All tests that leave it as they found it share it. Its next sweep is an hour away: a sweep would
    hide that the change stream was not heard.
    """
    # The socket of a test answers pings only while the test reads it, so the interval is long.
    async with serving(
        memory_folder / "server",
        LIVE_SWEEP_SECONDS="3600",
        LIVE_PING_SECONDS="20",
        LIVE_HIDE_SECONDS="3600",
    ) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server


@pytest.fixture
async def root(server: Server) -> AsyncIterator[Person]:
    """Return the administrator, signed in."""
    async with Person(server.url, "root", PASSWORD) as root:
        await root.sign_in()
        yield root


@pytest.fixture
async def ada(server: Server) -> AsyncIterator[Person]:
    """Return a new user with the role `member`, signed in."""
    async with Person(server.url, f"ada-{secrets.token_hex(4)}", PASSWORD) as ada:
        await ada.register()
        yield ada


@pytest.fixture
async def bob(server: Server) -> AsyncIterator[Person]:
    """Return another new user with the role `member`, signed in."""
    async with Person(server.url, f"bob-{secrets.token_hex(4)}", PASSWORD) as bob:
        await bob.register()
        yield bob
