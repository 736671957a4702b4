"""The stored receipts of an audit event, which are not part of the event."""

from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Self

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.models.audit.receipt import Receipt
from quartapp.models.base.record import Record

# As long as the events themselves.
KEPT = timedelta(days=400)
# Receipts of one event; each worker has one.
RECEIPTS = 200


class EventReceipts(Record):
    """What is known of the open tabs whose sessions an event has ended, under the event's id.

    An event that ended no open tab has none.
    """

    receipts: list[Receipt] = []
    counted_tabs: int = 0
    silent_worker: bool = False
    at: datetime = Field(default_factory=clock.now)

    class Settings:
        name = "receipts"
        indexes = [
            IndexModel([("at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds()))
        ]

    @classmethod
    async def of_events(cls, ids: Collection[PydanticObjectId]) -> dict[PydanticObjectId, Self]:
        """Return the receipts of these events by the ids of those that have any.

        Without ids, makes no query.
        """
        if not ids:
            return {}
        return {each.id: each for each in await cls.find({"_id": {"$in": list(ids)}}).to_list()}

    @classmethod
    async def keep(cls, event_id: PydanticObjectId, receipt: Receipt) -> None:
        """Store the receipt, in place of the last one of the same worker.

        Inserts the document if the event has none. At most RECEIPTS are kept: the first receipt of
        one more worker removes that of the worker whose first receipt is the oldest.
        """
        row, worker = receipt.model_dump(), receipt.worker
        mine = {"_id": event_id, "receipts.worker": worker}
        collection = cls.get_motor_collection()
        while not (await collection.update_one(mine, {"$set": {"receipts.$": row}})).matched_count:
            pushed = {"$push": {"receipts": {"$each": [row], "$slice": -RECEIPTS}}}
            fresh = {"_id": event_id, "receipts.worker": {"$ne": worker}}
            # Another worker may insert the document at the same time.
            with suppress(DuplicateKeyError):
                update = {**pushed, "$setOnInsert": _first("receipts")}
                await collection.update_one(fresh, update, upsert=True)
                return

    @classmethod
    async def store_barrier_result(
        cls, event_id: PydanticObjectId, *, tabs: int, silent: bool
    ) -> None:
        """Store how many open tabs the workers reported at the barrier, and whether a worker did
        not acknowledge it."""
        known = {"counted_tabs": tabs, "silent_worker": silent}
        update = {"$set": known, "$setOnInsert": _first(*known)}
        await cls.get_motor_collection().update_one({"_id": event_id}, update, upsert=True)


def _first(*given: str) -> dict[str, Any]:
    """Return the fields of a new document but those that the update gives."""
    fields = {"receipts": [], "counted_tabs": 0, "silent_worker": False, "at": clock.now()}
    return {name: value for name, value in fields.items() if name not in given}
