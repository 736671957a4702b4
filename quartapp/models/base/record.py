"""The base of all documents: conditional writes, the way in which state changes here."""

import os
from collections.abc import Collection, Mapping
from itertools import count
from typing import Any, Self

from beanie import Document, Link, PydanticObjectId, SortDirection
from pydantic import Field

from quartapp import clock
from quartapp.db.mongo import Tx
from quartapp.models.base.references import linked_id

_turns = count(int.from_bytes(os.urandom(2)))


def new_id() -> PydanticObjectId:
    """In the order of the milliseconds, and within one in the order in which this process made
    them. The driver's own are in no order within a second when two workers make them, and what
    people write is listed by its id."""
    seconds, milliseconds = divmod(round(clock.now().timestamp() * 1000), 1000)
    return PydanticObjectId(
        seconds.to_bytes(4, "big")
        + milliseconds.to_bytes(2, "big")
        + (next(_turns) % 2**24).to_bytes(3, "big")
        + os.urandom(3)
    )


class Record(Document):
    """A document with an id from the start. Never saved whole: writers would undo each other."""

    id: PydanticObjectId = Field(default_factory=new_id)  # type: ignore[assignment]

    @classmethod
    async def listed(
        cls,
        match: Mapping[str, Any],
        *,
        sort: str | list[tuple[str, SortDirection]],
        limit: int,
        fetch: Collection[str] = (),
        **options: Any,
    ) -> list[Self]:
        """One page of documents, with those that the given fields link, in a query for each field.

        Beanie's own `fetch_links` joins before it filters, over the whole collection and past
        every index.
        """
        rows = await cls.find(match, sort=sort, limit=limit, **options).to_list()
        for name in fetch:
            await _fetch(rows, name)
        return rows

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


def documents(collection: str) -> Any:
    """Return the driver's collection of this name (see `references`).

    For modules that read or change documents of a package above them, whose class they cannot
    import.
    """
    return Record.get_motor_collection().database[collection]


async def _fetch(rows: Collection[Record], field: str) -> None:
    """Puts documents in the place of links. A link to a document that is gone stays one."""
    values = [getattr(row, field) for row in rows]
    links = [link for value in values for link in (value if isinstance(value, list) else [value])]
    documents = await Link.fetch_list([link for link in links if isinstance(link, Link)])
    found = {each.id: each for each in documents if isinstance(each, Document)}
    for row, value in zip(rows, values, strict=True):
        if isinstance(value, list):
            setattr(row, field, [found[i] for i in map(linked_id, value) if i in found])
        elif value is not None:
            setattr(row, field, found.get(linked_id(value), value))
