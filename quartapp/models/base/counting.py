"""Numbers that are counted up to a limit, so that counting takes no longer with more documents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quartapp.db.mongo import Tx
from quartapp.i18n.numbers import format_capped
from quartapp.models.base.record import documents


@dataclass(frozen=True, slots=True)
class CappedCount:
    """A number; with `more`, there are at least so many. As text it is like "1,000+" then."""

    number: int
    more: bool = False

    def __str__(self) -> str:
        return format_capped(self.number, self.more)


async def count_up_to(
    most: int, collection: str, match: Mapping[str, Any], *, tx: Tx | None = None
) -> CappedCount:
    """Return how many documents of the collection match, counted up to `most`; if there are more,
    `most` with `more`."""
    found = await documents(collection).count_documents(match, limit=most + 1, session=tx)
    return CappedCount(min(found, most), more=found > most)
