"""Searching posts by the words of their titles and texts, newest first."""

import asyncio
from collections.abc import Sequence
from typing import Any

from beanie import PydanticObjectId
from pymongo import UpdateOne

from quartapp.models.base.record import BATCH
from quartapp.models.posts.post import Post
from quartapp.models.posts.words import words_of

# Words of a search that count; further ones are ignored.
MAX_TERMS = 8
# Posts that one page of results looks at.
SCANNED = 200


async def search(
    text: str, *, before: PydanticObjectId | None, limit: int
) -> tuple[list[Post], PydanticObjectId | None]:
    """Return at most `limit` posts that have all words of the text, newest first, with their
    authors fetched; and the id before which the next page starts, or None if there is none.

    With several words, looks at SCANNED posts with the rarest of them. So a page may have fewer
    posts than `limit` although there is a next one. A text without words finds nothing.
    """
    terms = words_of(text, MAX_TERMS)
    if not terms:
        return [], None
    rarest = await _rarest(terms)
    scanned = SCANNED if len(terms) > 1 else limit + 1
    match: dict[str, Any] = {"words": rarest}
    if before:
        match["_id"] = {"$lt": before}
    stages = [
        {"$match": match},
        {"$sort": {"_id": -1}},
        {"$limit": scanned},
        {"$project": {"found": {"$setIsSubset": [terms, "$words"]}}},
    ]
    rows = await Post.get_motor_collection().aggregate(stages).to_list(None)
    found = [row["_id"] for row in rows if row["found"]]
    posts = await Post.find_with_links(
        {"_id": {"$in": found[:limit]}}, sort="-_id", limit=limit, fetch=["author"]
    )
    if len(found) > limit:
        return posts, found[limit - 1]
    return posts, rows[-1]["_id"] if len(rows) == scanned else None


async def _rarest(terms: Sequence[str]) -> str:
    """Return the term that the fewest posts have, counted up to SCANNED; of several the longest."""
    if len(terms) == 1:
        return terms[0]
    collection = Post.get_motor_collection()
    counts = await asyncio.gather(
        *(collection.count_documents({"words": term}, limit=SCANNED) for term in terms)
    )
    return min(zip(counts, terms, strict=True), key=lambda pair: (pair[0], -len(pair[1])))[1]


async def fill_in() -> None:
    """Set the words of posts that have none, which an earlier version stored, in batches. Returns
    when no post lacks them. Runs at each start."""
    collection = Post.get_motor_collection()
    while rows := await collection.find(
        {"words": None}, {"title": 1, "body": 1}, limit=BATCH
    ).to_list(BATCH):
        # If the post was edited since, it has words already.
        await collection.bulk_write(
            [
                UpdateOne(
                    {"_id": row["_id"], "words": None},
                    {"$set": {"words": words_of(f"{row['title']}\n{row['body']}")}},
                )
                for row in rows
            ],
            ordered=False,
        )
