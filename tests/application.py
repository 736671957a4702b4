"""One application, kept running for tests of a process that ask for the same settings.

Starting and stopping the application takes longer than most tests. `Shared` keeps it running and
gives each test a database as it is after the first start, so tests do not see each other's data.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from jinja2.bccache import Bucket, BytecodeCache
from pymongo.asynchronous.database import AsyncDatabase
from quart import Quart

from quartapp import create_app, log, models
from quartapp.background import BackgroundTask
from quartapp.db import mongo
from quartapp.models import Role, Worker, WriteLock
from quartapp.routes import templating
from quartapp.runtime import Runtime, runtime_of
from quartapp.settings import Settings

# Collections with documents that a start of the application creates.
PREPARED = [Role.Settings.name, WriteLock.Settings.name]
HEARTBEATS = Worker.Settings.name
NAMES = [document.Settings.name for document in models.DOCUMENTS]  # type: ignore[attr-defined]

Documents = dict[str, list[dict[str, Any]]]


class CompiledTemplates(BytecodeCache):
    """Keeps compiled templates in memory."""

    def __init__(self) -> None:
        self._templates: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if template := self._templates.get(bucket.key):
            bucket.bytecode_from_string(template)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._templates[bucket.key] = bucket.bytecode_to_string()


def share_compiled_templates() -> None:
    """Make all applications of this process use the same compiled templates.

    Compiling those of one page takes longer than a request.
    """
    compiled = CompiledTemplates()

    class Environment(templating.Environment):
        def __init__(self, app: Quart, **options: Any) -> None:
            super().__init__(app, bytecode_cache=compiled, **options)

    templating.Environment = Environment


class Shared:
    """The application of this process, or only its connection to the database.

    It must not run during a test that binds the documents to another database: see `stop`.
    `database` is the one that the tests of this process use, over a connection of their own, and
    `data` the application's data folder.
    """

    _running: ClassVar[Self | None] = None

    def __init__(self, database: AsyncDatabase[Any], data: Path) -> None:
        self._database = database
        self._data = data
        self._stack = AsyncExitStack()
        self._settings: Settings | None = None
        self._connected: mongo.Database | None = None
        self._app: Quart | None = None
        self._prepared: Documents = {}
        self._parts: dict[str, object] = {}
        self._with_tasks: list[object] = []

    async def connection(self, settings: Settings) -> mongo.Database:
        """Return the database, to which the documents are bound. No application is running."""
        if self._app or not self._is_connected(settings) or not await self._restore():
            await self.close()
            self._connected = await self._stack.enter_async_context(_connected(settings))
            await self._remember(settings)
        assert self._connected is not None
        return self._connected

    async def app(self, settings: Settings) -> Quart:
        """Return the started application: the running one if a test has not changed its state."""
        if (
            self._app is None
            or not self._is_connected(settings)
            or not await self._is_as_started(runtime_of(self._app))
        ):
            await self.close()
            self._app = create_app(settings)
            await self._stack.enter_async_context(cast(Any, self._app.test_app()))
            self._parts = dict(vars(runtime_of(self._app)))
            self._with_tasks = list(filter(_is_running, self._parts.values()))
            self._connected = mongo._database
            await self._remember(settings)
        return self._app

    @classmethod
    async def stop(cls) -> None:
        """Close what is running in this process, if anything is."""
        if cls._running:
            await cls._running.close()

    async def close(self) -> None:
        """Stop what is running, and delete every document and every email."""
        stack, self._stack = self._stack, AsyncExitStack()
        self._app = self._connected = self._settings = None
        Shared._running = None
        await stack.aclose()
        await empty(self._database, self._data)

    def _is_connected(self, settings: Settings) -> bool:
        # A test may have bound the documents to a connection of its own.
        bound = mongo._database is self._connected is not None
        return bound and self._settings == settings

    async def _is_as_started(self, running: Runtime) -> bool:
        """Return the application to its state after a start. Return whether that succeeded."""
        listening = running.change_stream.live and running.lease.valid
        if not listening or running.hub.draining or running.hub.connected_sessions():
            return False
        if any(part is not self._parts[name] for name, part in vars(running).items()):
            return False
        log.configure(production=running.settings.production, worker=running.settings.worker)
        # The last test may have stopped them or left work in them.
        jobs = [
            part
            for part in vars(running).values()
            if type(part).__module__.startswith("quartapp.jobs.")
        ]
        for job in jobs:
            await job.stop()
        if not await self._restore(but=running.lease.worker_id):
            return False
        # After the barrier the application knows of all these changes.
        passed = await running.barrier.wait()
        # Roles of the last test, which the application would note as deleted by another program.
        running.role_deletions._deleted.clear()
        _delete_mail(self._data)
        for job in jobs:
            await job.start()
        return passed.complete and all(map(_is_running, self._with_tasks))

    async def _remember(self, settings: Settings) -> None:
        self._settings = settings
        Shared._running = self
        self._prepared = await self._contents()

    async def _contents(self) -> Documents:
        """Return the prepared documents, and one document of each other collection that has any."""
        pipelines = [
            [
                *([] if name in PREPARED else [{"$limit": 1}]),
                {"$project": {"_id": False, "collection": name, "document": "$$ROOT"}},
            ]
            for name in NAMES
        ]
        unions = [
            {"$unionWith": {"coll": name, "pipeline": pipeline}}
            for name, pipeline in zip(NAMES[1:], pipelines[1:], strict=True)
        ]
        found: Documents = {}
        async for row in await self._database[NAMES[0]].aggregate([*pipelines[0], *unions]):
            found.setdefault(row["collection"], []).append(row["document"])
        return found

    async def _restore(self, but: str = "") -> bool:
        """Return the database to its state after the start. Return whether that is possible.

        The heartbeat of the worker `but` stays.
        """
        if not await _is_plain(self._database):
            return False
        found, prepared = await self._contents(), self._prepared
        await asyncio.gather(
            *(
                self._database[name].delete_many({"_id": {"$ne": but}})
                for name in found
                if name not in PREPARED or found[name] != prepared.get(name)
            )
        )
        for name in PREPARED:
            if found.get(name) != prepared[name]:
                await self._database[name].insert_many(prepared[name])
        return True


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[mongo.Database]:
    async with mongo.connected(settings, models.DOCUMENTS) as database:
        await models.prepare()
        yield database


def _is_running(part: object) -> bool:
    """Whether the part has tasks in the background, and none of them has ended."""
    tasks = part._tasks if isinstance(part, BackgroundTask) else ()
    return bool(tasks) and not any(task.done() for task in tasks)


def _delete_mail(data: Path) -> None:
    shutil.rmtree(data / "mail", ignore_errors=True)


async def _is_plain(database: AsyncDatabase[Any]) -> bool:
    """Whether it has only the collections of the application, without validators or the like."""
    async for collection in await database.list_collections():
        # The options that remain after `collMod` has removed a validator.
        inactive = {"validator": {}, "validationLevel": "strict", "validationAction": "error"}
        if not collection["options"].items() <= inactive.items():
            return False
        if collection["name"] not in NAMES:
            return False
    return True


async def empty(database: AsyncDatabase[Any], data: Path) -> None:
    """Delete every document, and every email in the data folder.

    Creating the collections again would take ten times as long.
    """
    _delete_mail(data)
    if await _is_plain(database):
        await asyncio.gather(*(database[name].delete_many({}) for name in NAMES))
    else:
        await database.client.drop_database(database)
