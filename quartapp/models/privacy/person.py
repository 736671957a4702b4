"""The person whose data is exported or erased, and how the documents about them are found."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from beanie import PydanticObjectId

from quartapp import validation
from quartapp.activities import EMAIL_CHANGED
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.references import linked_id
from quartapp.models.roles.role import Role

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Person:
    """The user whose data is exported or erased.

    `former` are the earlier email addresses of the account, each with the time when it was given
    up: later it may belong to somebody else. `roles` has the names of roles by their ids.
    """

    user: User
    former: Mapping[str, datetime]
    roles: Mapping[PydanticObjectId, str] = field(default_factory=dict)

    @classmethod
    async def of(cls, user: User, roles: Collection[Role] = ()) -> Self:
        """Return the person for a user. Reads the former addresses, and when each was given up,
        from the audit log. `roles` are those whose names the export shows."""
        changed = {"subject.$id": user.id, "verb": EMAIL_CHANGED.audit}
        events = await Event.find(changed, sort="_id").to_list()
        former = {event.details["was"]: event.at for event in events if "was" in event.details}
        return cls(user, former, {role.id: role.name for role in roles})

    def addressed(self, name: str, at: str) -> list[dict[str, Any]]:
        """Return filters for documents whose field `name` is an address of the person.

        For a former address, only documents whose time in the field `at` is not after it was given
        up. Use with a collation that ignores case.
        """
        former = [
            {name: {"$in": validation.spellings(was)}, at: {"$lte": left}}
            for was, left in self.former.items()
        ]
        return [{name: {"$in": validation.spellings(self.user.email)}}, *former]

    def has_had(self, address: str | None) -> bool:
        """Return whether the address is the person's present one or a former one."""
        theirs = {validation.canonical_email(each) for each in (self.user.email, *self.former)}
        return address is not None and validation.canonical_email(address) in theirs

    def is_behind(self, link: Any) -> bool:
        """Return whether the link is to this user; False for None."""
        return link is not None and linked_id(link) == self.user.id


def fields(*names: str) -> Callable[[Row, Person], dict[str, Any]]:
    """Return a function that maps a document to a dictionary of only these fields, without those
    that are None. It ignores the person.

    Fields are listed by name so that a new field with a secret is not exported by accident.
    """
    return lambda row, person: {name: row[name] for name in names if row.get(name) is not None}


def linked(name: str) -> Callable[[Person], dict[str, Any]]:
    """Return a function that gives the filter for documents whose link `name` is to the person."""
    return lambda person: {f"{name}.$id": person.user.id}
