"""Removing personal data from the entries of the audit log, when an account is deleted.

These are the only writes that change an entry, apart from the salts that `models.audit.seal` adds
to entries of earlier versions. The hash of the entry stays valid: it covers commitments to these
values (`models.audit.entry_hash`), which stay. `models.audit.verification` accepts that a value is
missing only if the deletion of the account is in the chain.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from beanie import PydanticObjectId
from pymongo.collation import Collation

from quartapp.activities import A_POST
from quartapp.db.mongo import Tx
from quartapp.models.audit.entry_hash import LASTING
from quartapp.models.audit.event import Event
from quartapp.models.base.record import documents
from quartapp.models.base.references import EVENTS

LISTED = 10_000
_COMMITTED = {
    "$map": {
        "input": {"$objectToArray": {"$ifNull": ["$commitments.details", {}]}},
        "in": "$$this.k",
    }
}
# The details that the hash of the entry covers as they are. An entry without commitments is from an
# earlier version and was not sealed yet.
_REMAINING = {
    "$cond": [
        {"$eq": [{"$type": "$commitments"}, "missing"]},
        {name: f"$details.{name}" for name in LASTING},
        {
            "$arrayToObject": {
                "$filter": {
                    "input": {"$objectToArray": "$details"},
                    "cond": {"$not": {"$in": ["$$this.k", _COMMITTED]}},
                }
            }
        },
    ]
}


async def erase_details(
    match: Mapping[str, Any], account: PydanticObjectId, *, collation: Collation | None = None
) -> AsyncIterator[int]:
    """Remove the details that are not in LASTING from the entries that match, in batches.

    `account` is the account that is deleted; entries without a subject name it in `erased_for`.
    Also removes their salts. Not in a transaction. Yields the size of each batch, after its write.
    """
    unchanged = [{"$ifNull": ["$erased_for", []]}, [account]]
    named = {"$cond": [{"$ifNull": ["$subject", False]}, "$$REMOVE", {"$setUnion": unchanged}]}
    blank = [
        {
            "$replaceWith": {
                "$mergeObjects": ["$$ROOT", {"details": _REMAINING, "erased_for": named}]
            }
        },
        {"$unset": "salts.details"},
    ]
    async for ids in Event.batches(match, collation=collation):
        await documents(EVENTS).update_many({"_id": {"$in": ids}}, blank)
        yield len(ids)


async def erased_without_subject(
    account: PydanticObjectId, tx: Tx
) -> list[PydanticObjectId] | None:
    """Return the ids of the entries without a subject from which details were erased for the
    account; None if these are more than LISTED.

    The event ACCOUNT_DELETED contains them, as these entries do not tell in their hash which
    account they are about.
    """
    ids = await Event.ids({"erased_for": account}, limit=LISTED + 1, tx=tx)
    return sorted(ids) if len(ids) <= LISTED else None


async def erase_address(account: PydanticObjectId) -> AsyncIterator[int]:
    """Remove the IP address from the entries of what the account did, with its salt, in batches.

    Not in a transaction. Yields the size of each batch, after its write.
    """
    async for ids in Event.batches({"actor.$id": account}):
        await documents(EVENTS).update_many({"_id": {"$in": ids}}, _without_address())
        yield len(ids)


async def erase_address_at_once(account: PydanticObjectId, tx: Tx) -> None:
    """Remove the IP address from the entries of what the account did, with its salt, in one write
    of the caller's transaction.

    For an account that nobody could sign in to, which has few entries.
    """
    await documents(EVENTS).update_many({"actor.$id": account}, _without_address(), session=tx)


async def erase_titles(author: PydanticObjectId) -> AsyncIterator[int]:
    """Replace the titles of the author's posts in the entries that quote them by A_POST,
    and remove their salts, in batches.

    Not in a transaction. Yields the size of each batch, after its write.
    """
    blank = {"$set": {"details.title": A_POST}, "$unset": {"salts.details.title": ""}}
    async for ids in Event.batches({"details.author": author}):
        await documents(EVENTS).update_many({"_id": {"$in": ids}}, blank)
        yield len(ids)


def _without_address() -> dict[str, Any]:
    return {"$set": {"ip": None}, "$unset": {"salts.ip": ""}}
