"""The connection to MongoDB, and transactions. The only module that names Motor."""

from __future__ import annotations

import asyncio
import os
import random
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
    OperationFailure,
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

TRANSACTION_SECONDS = 5.0
LOCK_TIMEOUT = 24


class Unconfirmed(Exception):
    """The database did not say in time that the writes are done, or that they are not."""


# What a request answers with 503: the database is away, or has not confirmed a write in time.
Unavailable = (
    ConnectionFailure,
    NetworkTimeout,
    ExecutionTimeout,
    WTimeoutError,
    WriteConcernError,
    Unconfirmed,
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


async def transaction(work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    """Runs `work(session)` in one transaction: all of its writes, or none.

    Every call inside must pass `session=`. It may run again when another transaction was in the
    way, so it has no other effects. What `work` raises ends the transaction and is raised here;
    Unconfirmed when it was in vain for so long that whoever waits should be told.
    """
    assert _client is not None, "not connected"
    deadline, pause = clock.monotonic() + TRANSACTION_SECONDS, 0.002
    async with await _client.start_session() as session:
        while True:
            try:
                async with session.start_transaction():
                    result = await work(session)
                    await _commit(session, deadline)
                    return result
            except PyMongoError as error:
                if not error.has_error_label("TransientTransactionError"):
                    raise
                # A database that gives no locks at all, as while it is backed up, does not by and
                # by: only what others hold for a moment is worth another try.
                locked = isinstance(error, OperationFailure) and error.code == LOCK_TIMEOUT
                if locked or clock.monotonic() > deadline:
                    raise Unconfirmed(str(error)) from error
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
            pause = min(2 * pause, 0.1)


async def _commit(session: Session, deadline: float) -> None:
    """Again for as long as nobody can say whether it was done; doing it twice does it once."""
    while True:
        try:
            return await session.commit_transaction()
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            if clock.monotonic() > deadline:
                raise Unconfirmed(str(error)) from error


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
