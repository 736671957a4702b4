"""The base of all documents: conditional writes, the way in which state changes here."""

from collections.abc import Mapping
from typing import Any

from beanie import Document, PydanticObjectId
from pydantic import Field

from quartapp.database import Session as Tx


class Record(Document):
    """A document with an id from the start. Never saved whole: writers would undo each other."""

    id: PydanticObjectId = Field(default_factory=PydanticObjectId)  # type: ignore[assignment]

    @classmethod
    async def change(
        cls, match: Mapping[str, Any], update: Mapping[str, Any], *, tx: Tx | None = None
    ) -> bool:
        """Updates one document if it still is as the filter says; whether that changed anything."""
        collection = cls.get_motor_collection()
        return (await collection.update_one(match, update, session=tx)).modified_count == 1

    @classmethod
    async def change_all(
        cls, match: Mapping[str, Any], update: Mapping[str, Any], *, tx: Tx | None = None
    ) -> int:
        """Updates all documents that match. How many that changed."""
        collection = cls.get_motor_collection()
        return (await collection.update_many(match, update, session=tx)).modified_count

    @classmethod
    async def erase(cls, document_id: Any, *, tx: Tx | None = None) -> bool:
        """Deletes one document; whether there was one."""
        collection = cls.get_motor_collection()
        return (await collection.delete_one({"_id": document_id}, session=tx)).deleted_count == 1
