"""Connecting to the database and preparing it, for workers and for commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from pydantic import SecretStr
from pymongo.errors import PyMongoError

from quartapp import models
from quartapp.db import embedded, mongo
from quartapp.models.accounts.email_address import require_verification
from quartapp.models.accounts.one_time_token import issue_setup
from quartapp.models.base.references import DomainError
from quartapp.settings import Settings, StartError


@dataclass(frozen=True)
class Prepared:
    """What `quartapp serve` prints: the version of the database, and the path of the page that
    creates the first administrator, or None if there is an administrator."""

    database: str
    setup_path: str | None


async def prepare(settings: Settings) -> Prepared:
    """Prepare the database for workers, and return what `quartapp serve` prints. Called once when a
    server starts, before its workers do.

    Creates indexes and built-in roles, applies REQUIRE_VERIFIED_EMAIL to all accounts, and, if
    there is no active administrator, creates a token for the setup page, which voids earlier ones.
    The connection is closed afterwards. Raises StartError when the database cannot be reached or an
    index cannot be built, OutcomeUnknown, and what the driver raises.
    """
    async with mongo.connected(settings, models.DOCUMENTS):
        await models.prepare()
        await require_verification(settings.verification_required)
        token = await issue_setup()
        version = await mongo.server_version()
    return Prepared(f"MongoDB {version}", f"/setup/{token}" if token else None)


async def forget_worker(settings: Settings, worker_id: str) -> None:
    """Delete the heartbeat of a worker whose process has ended, so that no barrier waits for it.

    Raises StartError when the database cannot be reached, and what the driver raises.
    """
    async with mongo.connected(settings, [models.Worker]):
        await models.Worker.leave(worker_id)


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[None]:
    """Connect the documents to the database for the length of the block, and prepare it.

    Creates the data folder, and the indexes and built-in roles that are missing. If no address is
    configured, starts the embedded database or shares the one that runs; at the end it stops if
    nothing else uses it. Raises StartError, OutcomeUnknown, and what the driver raises.
    """
    settings.make_data_folder()
    async with AsyncExitStack() as stack:
        if settings.mongodb_uri is None:
            mongod = await stack.enter_async_context(embedded.running(settings.data))
            # The check of the version is for databases that the operator chose.
            update = {"mongodb_uri": SecretStr(mongod.uri), "allow_old_mongodb": True}
            settings = settings.model_copy(update=update)
        await stack.enter_async_context(mongo.connected(settings, models.DOCUMENTS))
        await models.prepare()
        yield


def expected_reason(error: Exception) -> str | None:
    """Return the line that tells the operator of an error of the settings, of a rule of the
    application or of the database. Return None for other errors, which are defects."""
    if isinstance(error, StartError | DomainError):
        return str(error)
    if isinstance(error, mongo.Unavailable):
        return f"the database is unavailable ({type(error).__name__})"
    if isinstance(error, PyMongoError):
        return f"the database rejected the operation: {mongo.error_summary(error)}"
    return None
