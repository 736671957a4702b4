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
ROLE_DELETIONS, ROLE_REQUESTS = "role_deletions", "role_requests"
EVENTS, PASSKEYS, POSTS, COMMENTS = "events", "passkeys", "posts", "comments"
# Strength 2 ignores case, and how an accent is encoded.
CASELESS = Collation(locale="en", strength=2)

if TYPE_CHECKING:
    type_of_link = Link[Any]
    UserRef = RoleRef = PasskeyRef = EventRef = type_of_link
else:
    UserRef, RoleRef = Link["User"], Link["Role"]
    PasskeyRef, EventRef = Link["Passkey"], Link["Event"]


def ref(collection: str, document_id: PydanticObjectId | None) -> Any:
    """Return a DBRef to the document, as Beanie stores links; None if the id is None."""
    return DBRef(collection, document_id) if document_id else None


def user_ref(user_id: PydanticObjectId | None) -> Any:
    """Return a DBRef to the user, as Beanie stores links; None if the id is None."""
    return ref(USERS, user_id)


def role_ref(role_id: PydanticObjectId | None) -> Any:
    """Return a DBRef to the role, as Beanie stores links; None if the id is None."""
    return ref(ROLES, role_id)


def linked_id(link: Any) -> PydanticObjectId:
    """Return the id of the linked document: `link` is a Link, or the document that replaced it."""
    return link.ref.id if hasattr(link, "ref") else link.id


class DomainError(Exception):
    """An operation is refused by a rule of the application.

    Its text is a sentence for the user who asked. `field` is the name of the value that is not
    accepted, such as "email"; None if the error is about the operation as a whole.
    `routes.refusals` maps each subclass to a status, and shows it at the field of this name.
    """

    field: str | None = None
