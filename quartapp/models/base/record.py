"""`Record`, the base class of most documents: ids that ascend with time, and conditional writes."""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping
from datetime import datetime
from itertools import chain, count
from typing import Any, Self

from beanie import Document, Link, PydanticObjectId, SortDirection
from pydantic import Field
from pymongo.collation import Collation

from quartapp import clock
from quartapp.db.mongo import Tx
from quartapp.models.base.references import linked_id

# How many documents a write changes at once where all those of one user are changed.
BATCH = 500
# How many documents one transaction deletes, besides those that only they refer to.
AT_ONCE = 100
_turns = count(int.from_bytes(os.urandom(2)))


def new_id() -> PydanticObjectId:
    """Return a new document id that is greater than those this process has created before.

    Ids are ordered by the millisecond and, within a millisecond, by a counter of this process; they
    end in random bytes. They are not in order after the clock was set back. The ids of the driver
    are in no order within a second when two workers create them, and lists of posts, comments and
    events are sorted by id.
    """
    seconds, milliseconds = divmod(round(clock.now().timestamp() * 1000), 1000)
    return PydanticObjectId(
        seconds.to_bytes(4, "big")
        + milliseconds.to_bytes(2, "big")
        + (next(_turns) % 2**24).to_bytes(3, "big")
        + os.urandom(3)
    )


def first_id_at(at: datetime) -> PydanticObjectId:
    """Return the lowest id that `new_id` can return at this time.

    Documents that were created at this time or later have ids that are not lower, and those that
    were created before have lower ones.
    """
    seconds, milliseconds = divmod(round(at.timestamp() * 1000), 1000)
    return PydanticObjectId(seconds.to_bytes(4, "big") + milliseconds.to_bytes(2, "big") + bytes(6))


class Record(Document):
    """A document that has its id before it is inserted.

    It is changed with conditional updates, never saved as a whole: two writers would overwrite each
    other's changes.
    """

    id: PydanticObjectId = Field(default_factory=new_id)  # type: ignore[assignment]

    @classmethod
    async def find_with_links(
        cls,
        match: Mapping[str, Any],
        *,
        sort: str | list[tuple[str, SortDirection]] | None = None,
        limit: int,
        fetch: Collection[str] = (),
        **options: Any,
    ) -> list[Self]:
        """Return at most `limit` documents that match, sorted, with the links in the fields `fetch`
        replaced by the documents.

        The fields cost one more query for each collection that they refer to, for all rows
        together. A link whose document does not exist stays a Link, and is dropped from a list.
        `options` are passed to Beanie's `find`. Beanie's own `fetch_links` is not used,
        because it joins the whole collection before it filters and uses no index.
        """
        rows = await cls.find(match, sort=sort, limit=limit, **options).to_list()
        await fetch_links(rows, fetch)
        return rows

    @classmethod
    async def change(
        cls, match: Mapping[str, Any], update: Mapping[str, Any], *, tx: Tx | None = None
    ) -> bool:
        """Update one document that matches; return whether that changed anything.

        The filter is the condition of the change: False means that no document matches any more, or
        that it had these values already. Raises what the driver raises, such as DuplicateKeyError.
        Objects that were read before keep their values.
        """
        collection = cls.get_motor_collection()
        return (await collection.update_one(match, update, session=tx)).modified_count == 1

    @classmethod
    async def change_all(
        cls, match: Mapping[str, Any], update: Mapping[str, Any], *, tx: Tx | None = None
    ) -> int:
        """Update all documents that match, in one write, and return how many of them changed."""
        collection = cls.get_motor_collection()
        return (await collection.update_many(match, update, session=tx)).modified_count

    @classmethod
    async def batches(
        cls,
        match: Mapping[str, Any],
        *,
        size: int = BATCH,
        collation: Collation | None = None,
    ) -> AsyncIterator[list[PydanticObjectId]]:
        """Yield the ids of all documents that match, in lists of at most `size`.

        Reads them while they are consumed, in no particular order. The caller may delete or change
        the documents of a list before it asks for the next one.
        """
        found = cls.get_motor_collection().find(
            match, {"_id": 1}, batch_size=size, collation=collation
        )
        while rows := await found.to_list(size):
            yield [row["_id"] for row in rows]

    @classmethod
    async def delete_in_batches(
        cls, match: Mapping[str, Any], *, collation: Collation | None = None
    ) -> AsyncIterator[int]:
        """Delete all documents that match, in batches. Yield after each batch how many it had."""
        async for ids in cls.batches(match, collation=collation):
            await cls.get_motor_collection().delete_many({"_id": {"$in": ids}})
            yield len(ids)

    @classmethod
    async def ids(
        cls,
        match: Mapping[str, Any],
        *,
        limit: int,
        collation: Collation | None = None,
        tx: Tx | None = None,
    ) -> list[PydanticObjectId]:
        """Return the ids of at most `limit` documents that match, in no particular order."""
        found = cls.get_motor_collection().find(
            match, {"_id": 1}, limit=limit, collation=collation, session=tx
        )
        return [row["_id"] for row in await found.to_list(limit)]

    @classmethod
    async def erase(cls, document_id: Any, *, tx: Tx | None = None) -> bool:
        """Delete the document of this id at once; return whether there was one."""
        collection = cls.get_motor_collection()
        return (await collection.delete_one({"_id": document_id}, session=tx)).deleted_count == 1


def documents(collection: str) -> Any:
    """Return the driver's collection of this name (see `references`).

    For modules that read or change documents of a package above them, whose class they cannot
    import.
    """
    return Record.get_motor_collection().database[collection]


async def fetch_links(rows: Collection[Record], fields: Collection[str]) -> None:
    """Replace the links in these fields of all rows with the documents.

    Sends one query for each collection that the links refer to, all at once. A field may hold one
    link or a list of them. A link whose document does not exist is dropped from a list, and stays a
    Link in a single field. None, and a document in the place of a link, stays as it is.
    """
    values = [(row, field, getattr(row, field)) for row in rows for field in fields]
    links: defaultdict[type, list[Any]] = defaultdict(list)
    for _, _, value in values:
        for link in value if isinstance(value, list) else [value]:
            if isinstance(link, Link):
                links[link.document_class].append(link)
    results = await asyncio.gather(*map(Link.fetch_list, links.values()))
    # By class too: two collections may have documents of the same id.
    found = {(type(each), each.id): each for each in chain(*results) if isinstance(each, Document)}

    def document_of(link: Any) -> Any:
        key = (link.document_class, linked_id(link)) if isinstance(link, Link) else None
        return found.get(key, link) if key else link

    for row, field, value in values:
        if isinstance(value, list):
            fetched = [document_of(each) for each in value]
            setattr(row, field, [each for each in fetched if not isinstance(each, Link)])
        elif value is not None:
            setattr(row, field, document_of(value))
