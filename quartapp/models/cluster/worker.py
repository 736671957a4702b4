"""Heartbeats of the workers, from which a barrier knows for whom to wait."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beanie import Document, PydanticObjectId
from pymongo import IndexModel

from quartapp.db import mongo
from quartapp.models.cluster.barrier_mark import BarrierMark

# Much longer than a lease, the time for which a worker may use its cache after a heartbeat.
STALE_SECONDS = 60.0
# How many workers the dashboard shows.
SHOWN = 200


class MarkMissing(Exception):
    """The member of the replica set that answered has not applied the barrier mark yet."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A stored heartbeat: its number, and the seconds since by the clock of the database."""

    beat: int
    age: float


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker has told about itself, `age` seconds ago: see `Worker`."""

    name: str
    age: float
    sockets: int | None = None
    lag: float | None = None


class Worker(Document):
    """The heartbeat of one worker process. Each process has a new id.

    `beat` is the number that the worker gave its last heartbeat; `at` is its time by the clock of
    the primary, and `primary` identifies that primary's term. `sockets` is how many tabs are
    connected to the worker, and `lag` by how many seconds its change stream was late; earlier
    versions write neither. Documents are deleted after an hour without a heartbeat.
    """

    id: str  # type: ignore[assignment]
    name: str
    beat: int
    at: datetime
    primary: str | None = None
    sockets: int | None = None
    lag: float | None = None

    class Settings:
        name = "workers"
        indexes = [IndexModel([("at", 1)], name="kept", expireAfterSeconds=3600)]

    @classmethod
    async def record_heartbeat(
        cls, worker_id: str, name: str, beat: int, sockets: int = 0, lag: float | None = None
    ) -> None:
        """Store the heartbeat of this worker: its name, the number `beat`, the numbers for the
        dashboard, the database's own time and the primary's term. Creates the document if it is
        missing. Returns after a majority has it; raises the driver's errors."""
        await cls.get_motor_collection().update_one(
            {"_id": worker_id},
            {
                "$set": {
                    "name": name,
                    "beat": beat,
                    "primary": mongo.primary_term(),
                    "sockets": sockets,
                    "lag": lag,
                },
                "$currentDate": {"at": True},
            },
            upsert=True,
        )

    @classmethod
    async def everyone(cls, *, after: PydanticObjectId | None = None) -> dict[str, Heartbeat]:
        """Return the last heartbeat of each worker that may be serving, by worker id.

        A worker that was killed leaves its document behind, which does not count once it is older
        than STALE_SECONDS by the database's clock. Two primaries may have different clocks, so a
        document that was written in another primary's term counts until it is deleted.

        `after` is the id of a barrier mark. The answer then contains every heartbeat that was
        written before the mark, also right after an election; raises MarkMissing if the member that
        answers does not have the mark.
        """
        age = {"$divide": [{"$subtract": ["$$NOW", "$at"]}, 1000]}
        heartbeats = [{"$project": {"beat": 1, "age": age, "primary": 1}}]
        if after is None:
            answer = cls.get_motor_collection().aggregate(heartbeats)
        else:
            # The union is read after the mark was found, so not from an older state.
            mark = [{"$match": {"_id": after}}, {"$project": {"_id": 1}}]
            union = {"$unionWith": {"coll": cls.Settings.name, "pipeline": heartbeats}}
            answer = BarrierMark.get_motor_collection().aggregate([*mark, union])
        found = await answer.to_list(None)
        if after is not None and (not found or found.pop(0)["_id"] != after):
            raise MarkMissing
        # Read after the query, so that it is the term of the primary that has answered.
        comparable = {None, mongo.primary_term() or None}
        return {
            each["_id"]: Heartbeat(each["beat"], each["age"])
            for each in found
            if each["age"] <= STALE_SECONDS or each.get("primary") not in comparable
        }

    @classmethod
    async def running(cls) -> list[WorkerState]:
        """Return what the workers have written with their last heartbeats, by name: of the SHOWN
        latest heartbeats. Also those that were killed less than a minute ago."""
        age = {"$divide": [{"$subtract": ["$$NOW", "$at"]}, 1000]}
        fields = {"_id": 0, "name": 1, "sockets": 1, "lag": 1, "age": age}
        steps: list[dict[str, Any]] = [{"$sort": {"at": -1}}, {"$limit": SHOWN}]
        answer = cls.get_motor_collection().aggregate([*steps, {"$project": fields}])
        found = [WorkerState(**row) for row in await answer.to_list(SHOWN)]
        running = [state for state in found if state.age <= STALE_SECONDS]
        return sorted(running, key=lambda state: state.name)

    @classmethod
    async def ids(cls) -> set[str]:
        """Return the ids of all workers that have a document, also of dead ones.

        A deposed primary cannot answer this query with an old state.
        """
        collection = cls.get_motor_collection()
        workers = collection.with_options(read_concern=mongo.current_read_concern())
        return {row["_id"] for row in await workers.find({}, {"_id": 1}).to_list(None)}

    @classmethod
    async def leave(cls, worker_id: str) -> None:
        """Delete the document of this worker. Does nothing if there is none."""
        await cls.get_motor_collection().delete_one({"_id": worker_id})

    @classmethod
    async def remove_silent(cls, worker_id: str, *, last_beat: int) -> None:
        """Delete the document of the worker, unless it has written another heartbeat."""
        await cls.get_motor_collection().delete_one({"_id": worker_id, "beat": last_beat})
