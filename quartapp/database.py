"""The connection to MongoDB, and transactions. The only module that names Motor."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

# Motor reads this when it is imported. Its default, five threads a core, starves under a
# change stream and a handful of slow queries on a small machine.
os.environ.setdefault("MOTOR_MAX_WORKERS", "32")

from beanie import Document, init_beanie
from motor.motor_asyncio import (
    AsyncIOMotorChangeStream,
    AsyncIOMotorClient,
    AsyncIOMotorClientSession,
    AsyncIOMotorDatabase,
)
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidURI,
    NetworkTimeout,
    PyMongoError,
    WriteConcernError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern

from quartapp import clock
from quartapp.settings import Settings, StartError

Session = AsyncIOMotorClientSession
Database = AsyncIOMotorDatabase
ChangeStream = AsyncIOMotorChangeStream
T = TypeVar("T")

# What a request answers with 503: the database is away, or has not confirmed a write in time.
Unavailable = (
    ConnectionFailure,
    NetworkTimeout,
    ExecutionTimeout,
    WTimeoutError,
    WriteConcernError,
)
# Whatever can end a change stream.
StreamError = PyMongoError

_client: AsyncIOMotorClient[Any] | None = None
_current = ReadConcern("linearizable")


@asynccontextmanager
async def connected(
    settings: Settings, models: Sequence[type[Document]]
) -> AsyncIterator[AsyncIOMotorDatabase[Any]]:
    """Binds the documents to the database of the settings, on this event loop.

    Every write waits for a majority of the replica set, at most 5 s. Raises StartError when the
    server cannot be reached or is no replica set. Builds no index: see `models.prepare`.
    """
    global _client, _current
    assert settings.mongodb_uri is not None, "an embedded database must be started first"
    try:
        client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(
            settings.mongodb_uri.get_secret_value(),
            tz_aware=True,
            # A date that Python has no number for must not make its document unreadable.
            datetime_conversion="DATETIME_CLAMP",
            w="majority",
            wtimeoutMS=5000,
            serverSelectionTimeoutMS=3000,
            connectTimeoutMS=2000,
            socketTimeoutMS=5000,
            heartbeatFrequencyMS=2000,
            appname="quartapp",
        )
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise StartError(f"MONGODB_URI: {error}") from None
    try:
        try:
            hello = await client.admin.command("hello")
        except PyMongoError as error:
            raise StartError(
                f"MONGODB_URI: the database does not answer: {_brief(error)}"
            ) from None
        if "setName" not in hello and hello.get("msg") != "isdbgrid":
            raise StartError(
                "MONGODB_URI: this server is no replica set, so it has neither transactions nor "
                "change streams; one node started with --replSet is enough"
            )
        clock.agree(hello["localTime"])
        members = [*hello.get("hosts", []), *hello.get("passives", [])]
        _current = ReadConcern("linearizable" if len(members) != 1 else "majority")
        database = client[settings.mongodb_db]
        await init_beanie(database, document_models=list(models), skip_indexes=True)
        _client = client
        yield database
    finally:
        _client = None
        client.close()


@asynccontextmanager
async def another(uri: str) -> AsyncIterator[AsyncIOMotorDatabase[Any]]:
    """The database that the address names, to read from. Raises StartError if it cannot be."""
    try:
        client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(
            uri, serverSelectionTimeoutMS=3000, connectTimeoutMS=2000, appname="quartapp import"
        )
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise StartError(f"--from-mongo: {error}") from None
    try:
        try:
            found = client.get_default_database()
            await found.command("ping")
        except ConfigurationError:
            raise StartError("--from-mongo: the address has to name a database") from None
        except PyMongoError as error:
            raise StartError(f"--from-mongo: {_brief(error)}") from None
        yield found
    finally:
        client.close()


async def transaction(work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    """Runs `work(session)` in one transaction: all of its writes, or none.

    Every call inside must pass `session=`. MongoDB may make it run again, so it has no other
    effects. What `work` raises ends the transaction and is raised here.
    """
    assert _client is not None, "not connected"
    async with await _client.start_session() as session:
        return await session.with_transaction(work)


def current() -> ReadConcern:
    """The read concern for what must not be said by a primary that was deposed unawares.

    Linearizable, which asks the other members. A node that is alone has nobody to be deposed by,
    and would take 100 ms to find that out.
    """
    return _current


async def server_version() -> str:
    assert _client is not None, "not connected"
    info = await _client.server_info()
    return str(info["version"])


def _brief(error: PyMongoError) -> str:
    return str(error).split(", Timeout:")[0].split(" (configured timeouts")[0][:200]


async def ping() -> None:
    """Raises one of Unavailable when the database does not answer."""
    assert _client is not None, "not connected"
    await _client.admin.command("ping")
