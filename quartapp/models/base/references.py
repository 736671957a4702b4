"""References between documents, and the collections that several packages read.

Documents link one another in both directions (users hold roles, sessions belong to users), so the
classes cannot import each other. A field that links a document of a package above is typed with a
reference from here; `models.__init__` resolves it when all classes exist.
"""

from typing import TYPE_CHECKING, Any

from beanie import Link, PydanticObjectId
from bson import DBRef
from pymongo.collation import Collation

USERS, ROLES, SESSIONS = "users", "roles", "sessions"
EVENTS, PASSKEYS, POSTS, COMMENTS = "events", "passkeys", "posts", "comments"
# Strength 2: neither case nor the encoding of an accent makes a difference.
CASELESS = Collation(locale="en", strength=2)

if TYPE_CHECKING:
    type_of_link = Link[Any]
    UserRef = RoleRef = PasskeyRef = EventRef = type_of_link
else:
    UserRef, RoleRef = Link["User"], Link["Role"]
    PasskeyRef, EventRef = Link["Passkey"], Link["Event"]


def ref(collection: str, document_id: PydanticObjectId | None) -> Any:
    """Return a reference as Beanie stores it, for a Link field or an update; None for no id."""
    return DBRef(collection, document_id) if document_id else None


def user_ref(user_id: PydanticObjectId | None) -> Any:
    """Return a reference to the user, as Beanie stores it; None for no id."""
    return ref(USERS, user_id)


def role_ref(role_id: PydanticObjectId | None) -> Any:
    """Return a reference to the role, as Beanie stores it; None for no id."""
    return ref(ROLES, role_id)


def linked_id(link: Any) -> PydanticObjectId:
    """Return the id behind a link, whether the linked document was fetched or not."""
    return link.ref.id if hasattr(link, "ref") else link.id


class DomainError(Exception):
    """A rule of the domain forbids the change. The text is a sentence for the person who asked."""
