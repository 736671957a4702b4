"""References between documents, and the collation by which names are one name in any case."""

from typing import Any

from beanie import PydanticObjectId
from bson import DBRef
from pymongo.collation import Collation

# Strength 2: case is no difference, nor is the way in which an accent is encoded.
CASELESS = Collation(locale="en", strength=2)


def ref(collection: str, document_id: PydanticObjectId | None) -> Any:
    """A reference as Beanie stores it, which a Link field takes; None for no document."""
    return DBRef(collection, document_id) if document_id else None


def linked_id(link: Any) -> PydanticObjectId:
    """The id behind a link, fetched or not."""
    return link.ref.id if hasattr(link, "ref") else link.id


class DomainError(Exception):
    """What the domain refuses. Its text is a sentence for the person who asked."""
