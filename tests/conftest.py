"""What tests stand on: a real mongod, the application in this process, real workers beside it."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config
from jinja2.bccache import Bucket, BytecodeCache
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from quart import Quart

from quartapp import create_app, models
from quartapp.db import embedded, mongo
from quartapp.settings import Settings
from tests.people import SECONDS, First, Person, Running, Server

PASSWORD = "correct horse battery staple"


# The files that take longest, the longest first. One that came last would run alone in the end.
LONGEST = (
    "tests/flows/test_endings.py",
    "tests/test_serving.py",
    "tests/flows/test_complaints.py",
    "tests/faults/test_replica_set.py",
    "tests/faults/test_partition.py",
    "tests/browser/test_looks.py",
    "tests/faults/test_database_away.py",
    "tests/faults/test_clocks.py",
    "tests/faults/test_hostile_sockets.py",
    "tests/flows/test_leaving.py",
    "tests/faults/test_change_stream.py",
    "tests/flows/test_manners.py",
    "tests/browser/test_live_pages.py",
    "tests/browser/test_drafts.py",
    "tests/flows/test_no_answer_after_the_end.py",
    "tests/cli/test_alone.py",
    "tests/browser/test_confirming.py",
    "tests/faults/test_unwilling_database.py",
    "tests/flows/test_receipts.py",
    "tests/flows/test_herd.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests so that those files come first, then the others that use real servers."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    servers = ("tests/browser/", "tests/flows/", "tests/faults/", "tests/cli/")

    def rank(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return ranks.get(file, len(ranks) + (not file.startswith(servers)))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def signals() -> None:
    """What runs in the background of a script, or by nohup, ignores some signals, and so would the
    servers that it starts. To do nothing on one is not inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
async def mongod(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a mongod that this run of the tests started, and ends."""
    async with embedded.running(tmp_path_factory.mktemp("db")) as mongod:
        yield mongod.uri


@pytest.fixture(scope="session")
async def client(mongod: str) -> AsyncIterator[AsyncMongoClient[Any]]:
    """A connection beside the application's."""
    async with AsyncMongoClient[Any](mongod) as client:
        yield client


@pytest.fixture
async def settings(
    mongod: str, client: AsyncMongoClient[Any], tmp_path: Path
) -> AsyncIterator[Settings]:
    """Settings for a database without a document in it."""
    yield _settings(mongod, "test", tmp_path)
    await _empty(client["test"])


@pytest.fixture
async def unprepared(
    mongod: str, client: AsyncMongoClient[Any], tmp_path: Path
) -> AsyncIterator[Settings]:
    """Settings for a database that does not exist yet."""
    yield _settings(mongod, "unprepared", tmp_path)
    await client.drop_database("unprepared")


def _settings(mongod: str, name: str, data: Path) -> Settings:
    return Settings.load(
        mongodb_uri=SecretStr(mongod),
        mongodb_db=name,
        data=data,
        # The packaged mongod, also where a test has the application run as in production.
        allow_old_mongodb=True,
        bcrypt_cost=4,
        bcrypt_threads=2,
        live_ping_seconds=1,
        live_sweep_seconds=1,
    )


async def _empty(database: AsyncDatabase[Any]) -> None:
    """Building collections with their indexes takes ten times as long as emptying them. What else
    a test may have changed in one goes with the whole."""
    collections = await (await database.list_collections()).to_list()
    if any(collection["options"] for collection in collections):
        await database.client.drop_database(database)
    else:
        for collection in collections:
            await database[collection["name"]].delete_many({})


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[mongo.Database]:
    """The documents, bound to an empty and prepared database; itself for raw writes."""
    async with mongo.connected(settings, models.DOCUMENTS) as connected:
        await models.prepare()
        yield connected


class Compiled(BytecodeCache):
    """Templates as they were compiled once. Each application would do so anew."""

    def __init__(self) -> None:
        self._templates: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if template := self._templates.get(bucket.key):
            bucket.bytecode_from_string(template)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._templates[bucket.key] = bucket.bytecode_to_string()


COMPILED = Compiled()


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    """The application, started. The documents are bound to its database."""
    app = create_app(settings)
    app.jinja_env.bytecode_cache = COMPILED
    async with app.test_app():
        yield app


@asynccontextmanager
async def serving(
    data: Path, *, workers: int = 2, first: First | None = None, **env: str
) -> AsyncIterator[Server]:
    """`quartapp serve` as a deployment runs it: a launcher, workers, a mongod; on a free port."""
    (folder := data.with_name(f"{data.name}.streams")).mkdir()
    launcher = Running(
        *("serve", "--port", "0", "--workers", str(workers), "--data", str(data)),
        folder=folder,
        env={
            "BCRYPT_COST": "4",
            "LIVE_PING_SECONDS": "2",
            "LIVE_SWEEP_SECONDS": "2",
            # Everybody in the tests comes from one address.
            "LIMIT_REGISTRATION": "100000 per hour",
            "LIMIT_SIGN_IN_ADDRESS": "100000 per hour",
            "LIMIT_HANDSHAKE_USER": "100000 per hour",
            "LIMIT_HANDSHAKE_ADDRESS": "100000 per hour",
            **env,
        },
        first=first,
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
async def serving_here(
    app: Any, *, over: asyncio.Event, **settings: Any
) -> AsyncIterator[tuple[str, int]]:
    """hypercorn in this process, so that it can be broken: its address. It leaves when it is over,
    which it is in the end."""
    config, listener = Config(), socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    # hypercorn closes it.
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
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server of two workers for all tests that leave it as they found it. Has a `root`."""
    async with serving(tmp_path_factory.mktemp("srv")) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server


@pytest.fixture
async def root(server: Server) -> AsyncIterator[Person]:
    """An administrator, signed in."""
    async with Person(server.url, "root", PASSWORD) as root:
        await root.sign_in()
        yield root


@pytest.fixture
async def ada(server: Server) -> AsyncIterator[Person]:
    """Somebody with the role of a member, registered and signed in just now."""
    async with Person(server.url, f"ada-{secrets.token_hex(4)}", PASSWORD) as ada:
        await ada.register()
        yield ada


@pytest.fixture
async def bob(server: Server) -> AsyncIterator[Person]:
    """Somebody else of that kind."""
    async with Person(server.url, f"bob-{secrets.token_hex(4)}", PASSWORD) as bob:
        await bob.register()
        yield bob
