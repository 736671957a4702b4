"""The connection to MongoDB, and transactions. The only module that names Motor."""

from __future__ import annotations

import asyncio
import os
import random
import re
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

# Motor reads this when it is imported. Its default, five threads per core, is too few on a small
# machine: a change stream and a few slow queries would occupy them all.
os.environ.setdefault("MOTOR_MAX_WORKERS", "32")

from beanie import Document, init_beanie
from motor.motor_asyncio import (
    AsyncIOMotorClient,
    AsyncIOMotorClientSession,
    AsyncIOMotorDatabase,
)
from pymongo import IndexModel
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern

from quartapp import clock
from quartapp.settings import Settings, StartError

ClientSession = AsyncIOMotorClientSession
# The session of the transaction in which a function reads or writes.
Tx = ClientSession
Database = AsyncIOMotorDatabase
T = TypeVar("T")

TRANSACTION_SECONDS = 5.0
TURN_SECONDS = 0.3
PAGE_WAIT_MS = 1000
PAGE_SIZE = 250
LOCK_TIMEOUT_CODE = 24
MIN_VERSION = 7
UNREADABLE = (
    "this address cannot be read: write mongodb://USER:PASSWORD@HOST:PORT/?OPTIONS, and in the "
    "password % as %25, : as %3A, / as %2F, ? as %3F and @ as %40"
)
LINEARIZABLE, MAJORITY = ReadConcern("linearizable"), ReadConcern("majority")


class OutcomeUnknown(Exception):
    """The database did not confirm in time whether a transaction was committed."""


# A request answers these with 503: the database is away, or has not confirmed a write in time.
Unavailable = (
    ConnectionFailure,
    NetworkTimeout,
    ExecutionTimeout,
    WTimeoutError,
    WriteConcernError,
    OutcomeUnknown,
)
# The base class of all errors of the driver.
DatabaseError = PyMongoError

_client: AsyncIOMotorClient[Any] | None = None
_database: AsyncIOMotorDatabase[Any] | None = None
_settings: Settings | None = None
_retry_lock = asyncio.Lock()


@asynccontextmanager
async def connected(
    settings: Settings, models: Sequence[type[Document]]
) -> AsyncIterator[AsyncIOMotorDatabase[Any]]:
    """Connect to the database of the settings, bind the documents to it, and yield it.

    In the body, the other functions of this module use this connection and these settings, on this
    event loop. Closes the connection at the end. Also sets `quartapp.clock` by the server's time.

    Every write waits for a majority of the replica set, at most 5 s. Raises StartError when the
    address cannot be read, when the server cannot be reached, is a mongos or is no replica set, and
    in production when it is older than MIN_VERSION (unless ALLOW_OLD_MONGODB is set). Builds no
    index: see `models.prepare`.
    """
    global _client, _database, _settings, _retry_lock
    assert settings.mongodb_uri is not None, "an embedded database must be started first"
    client = _open_client(
        settings.mongodb_uri.get_secret_value(),
        setting="MONGODB_URI",
        tz_aware=True,
        # A date outside the range of Python's datetime must not make its document unreadable.
        datetime_conversion="DATETIME_CLAMP",
        w="majority",
        wtimeoutMS=5000,
        socketTimeoutMS=5000,
        heartbeatFrequencyMS=2000,
        appname="quartapp",
    )
    try:
        try:
            hello = await client.admin.command("hello")
            if settings.production and not settings.allow_old_mongodb:
                _require_supported((await client.server_info())["version"])
        except PyMongoError as error:
            raise StartError(f"MONGODB_URI: no database answers: {error_summary(error)}") from None
        if hello.get("msg") == "isdbgrid":
            raise StartError(
                "MONGODB_URI: this is a mongos, and quartapp does not run on a sharded cluster; "
                "give it a replica set of its own"
            )
        if "setName" not in hello:
            raise StartError(
                "MONGODB_URI: this server is no replica set, so it has neither transactions nor "
                "change streams; one node started with --replSet is enough"
            )
        clock.synchronize(hello["localTime"])
        database = client[settings.mongodb_db]
        await init_beanie(database, document_models=list(models), skip_indexes=True)
        _client, _database, _settings, _retry_lock = client, database, settings, asyncio.Lock()
        yield database
    finally:
        _client = _database = _settings = None
        client.close()


async def build_indexes(collection: str, indexes: Sequence[IndexModel]) -> None:
    """Build those of the indexes that the collection lacks, however long it takes.

    In a large collection that takes longer than a command may. Then it asks again over a connection
    without this limit. Raises what the driver raises.
    """
    assert _database is not None, "not connected"
    try:
        await _database[collection].create_indexes(indexes)
    except NetworkTimeout:
        uri = settings().mongodb_uri
        assert uri is not None
        client = _open_client(uri.get_secret_value(), setting="MONGODB_URI", w="majority")
        try:
            await client[_database.name][collection].create_indexes(indexes)
        finally:
            client.close()


@asynccontextmanager
async def import_source(uri: str) -> AsyncIterator[AsyncIOMotorDatabase[Any]]:
    """Connect to another database, and yield the one that the address names, to read from it.

    Closes the connection at the end. Raises StartError when the address cannot be read or names no
    database, and when the server does not answer.
    """
    client = _open_client(uri, setting="--from-mongo", appname="quartapp import")
    try:
        try:
            found = client.get_default_database()
            await found.command("ping")
        except ConfigurationError:
            raise StartError("--from-mongo: the address has to name a database") from None
        except PyMongoError as error:
            raise StartError(f"--from-mongo: {error_summary(error)}") from None
        yield found
    finally:
        client.close()


def _open_client(uri: str, *, setting: str, **options: Any) -> AsyncIOMotorClient[Any]:
    """Return a client for the address, with `options` for the driver.

    Does not connect yet, but for `mongodb+srv` looks up DNS records. Raises StartError, which
    begins with `setting`, for an address that cannot be read, has no DNS records, or has an option
    that the driver does not know. What the driver says may contain pieces of a password, so the
    error never repeats it: it names the option or shows how to write an address.
    """
    scheme, separator, rest = uri.strip().partition("://")
    authority = re.split("[/?]", rest)[0]
    behind = rest.removeprefix(authority)
    if not separator or scheme not in ("mongodb", "mongodb+srv"):
        raise StartError(f"{setting}: write an address that begins with mongodb://")
    hosts = authority.rpartition("@")[2]
    well_formed = uri.isascii() and not re.search(r"\s|%(?![0-9A-Fa-f]{2})", uri.strip()) and hosts
    # An "@" behind the hosts means that the password contains an unescaped "/" or "?".
    if not well_formed or "@" in behind:
        raise StartError(f"{setting}: {UNREADABLE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return AsyncIOMotorClient(
                uri.strip(), serverSelectionTimeoutMS=3000, connectTimeoutMS=2000, **options
            )
    except (PyMongoError, ValueError, TypeError, Warning) as error:
        if scheme == "mongodb+srv" and "DNS" in str(error):
            raise StartError(f"{setting}: there are no DNS records of {hosts}") from None
        raise StartError(f"{setting}: {_rejected_option(behind, error) or UNREADABLE}") from None


def _rejected_option(after_hosts: str, error: Exception) -> str | None:
    """Return a sentence about the option of the address that the driver's error names, or None if
    it names none.

    `after_hosts` is the part of the address behind the hosts. Values of options are never shown.
    """
    names = {pair.partition("=")[0] for pair in re.split("[&;]", after_hosts.partition("?")[2])}
    words = {word.lower() for word in re.findall(r"\w+", str(error))}
    wrong = sorted(name for name in names if name.isalnum() and name.lower() in words)
    return f"the option {wrong[0]} is not known or has a wrong value" if wrong else None


def _require_supported(version: str) -> None:
    """Raises StartError for a MongoDB older than MIN_VERSION, which production does not accept."""
    if int(version.split(".")[0]) < MIN_VERSION:
        raise StartError(
            f"MONGODB_URI: this is MongoDB {version}, production needs {MIN_VERSION}.0 or newer "
            "(ALLOW_OLD_MONGODB=true allows it)"
        )


def settings() -> Settings:
    """Return the settings that `connected` was given; models read their limits from them."""
    assert _settings is not None, "not connected"
    return _settings


async def transaction(work: Callable[[ClientSession], Coroutine[Any, Any, T]]) -> T:
    """Run `work(session)` in one transaction, so that all of its writes are done or none, commit it
    and return its result.

    Every database call in `work` has to pass `session=`. After a transient error, such as a
    conflict with another transaction, `work` runs again, so it must have no other effects. After
    its first conflict, a transaction waits up to TURN_SECONDS for the retries of others in this
    process, and pauses for a random time that grows up to 0.1 s before each further run.

    Any other exception of `work` aborts the transaction and is raised. Raises OutcomeUnknown when
    no run has succeeded, or no commit was confirmed, within TRANSACTION_SECONDS, and at once when
    the database gives no locks, as during a backup.
    """
    assert _client is not None, "not connected"
    deadline, pause = clock.monotonic() + TRANSACTION_SECONDS, 0.002
    async with await _client.start_session() as session, AsyncExitStack() as stack:
        queued = False
        while True:
            try:
                async with session.start_transaction():
                    result = await work(session)
                    await _commit(session, deadline)
                    return result
            except InvalidOperation as error:
                # When the task is cancelled during the commit, the driver tries to abort the
                # transaction, which fails, and the cancellation must not be lost.
                if isinstance(error.__context__, asyncio.CancelledError):
                    raise error.__context__ from None
                raise
            except PyMongoError as error:
                if isinstance(error, ConfigurationError):
                    _replace_connections()
                elif not error.has_error_label("TransientTransactionError"):
                    raise
                # A database that gives no locks, as during a backup, will not give them soon:
                # trying again would be in vain.
                locked = isinstance(error, OperationFailure) and error.code == LOCK_TIMEOUT_CODE
                if locked or clock.monotonic() > deadline:
                    raise OutcomeUnknown(str(error)) from error
                if not queued:
                    # Transactions that conflicted would conflict again: from here on they try
                    # one at a time, in the order in which they came.
                    queued = await _wait_for_turn(stack)
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
            pause = min(2 * pause, 0.1)


async def _wait_for_turn(stack: AsyncExitStack) -> bool:
    """Wait up to TURN_SECONDS for the lock of retries, and keep it until `stack` is closed.

    Return whether the lock was acquired. After that time the transaction retries without it: the
    one that holds the lock may wait for something else, and a revocation must not wait for a
    request of the user whom it concerns.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(TURN_SECONDS):
            await stack.enter_async_context(_retry_lock)
            return True
    return False


async def _commit(session: ClientSession, deadline: float) -> None:
    """Commit the transaction, and repeat the command while the driver reports that the result is
    unknown. Committing twice has no further effect.

    Raises OutcomeUnknown once the deadline, a time of `clock.monotonic`, has passed, and other
    errors of the driver at once.
    """
    while True:
        try:
            return await session.commit_transaction()
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            if clock.monotonic() > deadline:
                raise OutcomeUnknown(str(error)) from error


def current_read_concern() -> ReadConcern:
    """Return the read concern for reads that a deposed primary must not answer with old data.

    It is linearizable, for which the primary asks the other members. A replica set of one member
    cannot depose its primary and would take 100 ms to answer, so there it is majority. Reads the
    driver's current view of the replica set, so call it for each read: members may be added.
    """
    assert _client is not None, "not connected"
    servers = _client.delegate.topology_description.server_descriptions().values()
    return MAJORITY if [len(server.all_hosts) for server in servers] == [1] else LINEARIZABLE


def primary_term() -> str:
    """Return the id of the election that the current primary won. Each election changes it.

    Return an empty text if it is unknown, as during an election. Does not ask the server.
    """
    assert _client is not None, "not connected"
    servers = _client.delegate.topology_description.server_descriptions().values()
    terms = (server.election_id for server in servers if server.server_type_name == "RSPrimary")
    return str(next(terms, None) or "")


class ChangeCursor:
    """An open change stream, read a page at a time.

    `token` is the resume token behind the last page that was read.

    The driver's own change stream switches to another thread and back for each change, which is
    most of the cost when thousands come at once. This one does so once for each page.
    """

    def __init__(self, session: ClientSession, cursor: Mapping[str, Any]) -> None:
        self.token = cursor.get("postBatchResumeToken")
        self._session = session
        self._cursor = cursor

    async def pages(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the changes in pages of at most PAGE_SIZE, as long as the stream is open.

        A page is empty when there was no change for PAGE_WAIT_MS. `token` is updated before each
        page. The iterator also ends, without an error, when the server closes the stream. Raises
        what the driver raises.
        """
        page = self._cursor["firstBatch"]
        while True:
            yield page
            if not self._cursor["id"]:
                return
            more = {"getMore": self._cursor["id"], "collection": "$cmd.aggregate"}
            # Without a size the server reads a large transaction to its end before it answers.
            more |= {"maxTimeMS": PAGE_WAIT_MS, "batchSize": PAGE_SIZE}
            answer = await _command(more, self._session)
            self._cursor = answer["cursor"]
            self.token = self._cursor.get("postBatchResumeToken", self.token)
            page = self._cursor["nextBatch"]

    async def close(self) -> None:
        """Close the cursor on the server if it is open. Suppresses every error."""
        if self._cursor["id"]:
            # An error here would hide the error because of which the stream is closed.
            with suppress(Exception):
                cursors = {"killCursors": "$cmd.aggregate", "cursors": [self._cursor["id"]]}
                await _command(cursors, self._session)


@asynccontextmanager
async def change_cursor(
    pipeline: Sequence[Mapping[str, Any]], *, after: Mapping[str, Any] | None
) -> AsyncIterator[ChangeCursor]:
    """Open a change stream of the whole database, yield its ChangeCursor, and close it at the end.

    `pipeline` filters and shapes the changes. The stream starts behind the resume token `after`, or
    now if it is None. Raises what the driver raises, for example when the history behind the token
    is lost; and AutoReconnect when the server does not take sessions yet, as while it starts. The
    connections are replaced then, so that a further call can succeed.
    """
    assert _client is not None, "not connected"
    start = {"$changeStream": {"resumeAfter": after} if after else {}}
    watch = {"aggregate": 1, "pipeline": [start, *pipeline], "cursor": {}}
    async with await _client.start_session(causal_consistency=False) as session:
        try:
            answer = await _command({**watch, "readConcern": {"level": "majority"}}, session)
        except ConfigurationError as error:
            _replace_connections()
            raise AutoReconnect(str(error)) from error
        opened = ChangeCursor(session, answer["cursor"])
        try:
            yield opened
        finally:
            await opened.close()


def _replace_connections() -> None:
    """Make the driver open new connections. Those in use are closed when they are returned.

    The driver asks whether a server takes sessions once, when it opens a connection, and a server
    that is just starting says no. Where the address names one server (`directConnection`), the
    driver opens connections to it then and keeps them, and no transaction could use them.
    """
    assert _client is not None, "not connected"
    for server in _client.delegate._topology._servers.values():
        server.pool.reset_without_pause()


async def _command(command: dict[str, Any], session: ClientSession) -> Mapping[str, Any]:
    """Run the command in the session, and return the answer as it is. Raises the driver's errors,
    also for an answer that is an error."""
    assert _database is not None, "not connected"
    return await _database.command(command, session=session, codec_options=_database.codec_options)


async def server_version() -> str:
    """Ask the server for its version, and return it as text. Raises the driver's errors."""
    assert _client is not None, "not connected"
    info = await _client.server_info()
    return str(info["version"])


def error_summary(error: PyMongoError) -> str:
    """Return the message of the server or the driver as one line of ASCII, at most 200 characters,
    without the driver's list of servers and timeouts."""
    if isinstance(error, OperationFailure):
        text = str((error.details or {}).get("errmsg") or error)
    else:
        text = re.split(r", Timeout:| \(configured timeouts|, full error:", str(error))[0]
    return re.sub(r"[^ -~]+", " ", text)[:200].strip()


async def ping() -> None:
    """Ask the database for an answer. Raises one of `Unavailable` when it does not give one."""
    assert _client is not None, "not connected"
    await _client.admin.command("ping")
