"""The ends of expiring grants: which roles a user holds at a given time.

A user's document lists them in `role_ends`, beside `roles`. An entry says until when the user holds
one role; a role without an entry has no end, and an entry whose role the user does not have means
nothing. So documents of earlier versions, and programs that know only `roles`, stay right.

`user` is a stored document, or the fields of a `User`. Nothing here reads the database.
`models.accounts.role_grants` sets the ends and records when they have passed.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from beanie import PydanticObjectId
from bson import ObjectId
from pydantic import BaseModel

from quartapp import clock
from quartapp.models.accounts.status import NEVER
from quartapp.models.base.references import linked_id

# The user is warned this long before the end, but not before nine tenths of the grant are over.
WARNED = timedelta(minutes=10)


class RoleEnd(BaseModel):
    """The end of one grant. `warn_at` is when the user will be warned; None if they were, or if the
    role was granted by another program."""

    role: PydanticObjectId
    until: datetime
    warn_at: datetime | None = None

    @classmethod
    def of(cls, role_id: PydanticObjectId, until: datetime) -> "RoleEnd":
        """Return the entry for a grant from now until this time, in whole milliseconds, as the
        database stores them."""
        until, now = clock.truncate(until), clock.now()
        return cls(role=role_id, until=until, warn_at=until - min(WARNED, (until - now) / 10))


def well_formed(entries: Any) -> list[Any]:
    """Return the entries that have a role and a time. Another program may have written others."""
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, RoleEnd) or _is_end(entry)]


def _is_end(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and isinstance(entry.get("role"), ObjectId)
        and isinstance(entry.get("until"), datetime)
    )


def ends_of(user: Mapping[str, Any]) -> dict[PydanticObjectId, datetime]:
    """Return until when the user holds each role that has an end, by the role's id; of several
    entries for a role the earliest. Ignores entries that are not well-formed, but not those of
    roles that the user does not have."""
    ends: dict[PydanticObjectId, datetime] = {}
    for entry in well_formed(user.get("role_ends") or []):
        fields = entry.__dict__ if isinstance(entry, RoleEnd) else entry
        until = clock.as_utc(fields["until"])
        ends[fields["role"]] = min(until, ends.get(fields["role"], NEVER))
    return ends


def expired_roles(user: Mapping[str, Any], now: datetime) -> set[PydanticObjectId]:
    """Return the ids of the roles whose end has passed and was not recorded yet. Recording it
    removes the entry."""
    return {role_id for role_id, until in ends_of(user).items() if until <= now}


def held_roles(user: Mapping[str, Any], now: datetime) -> set[PydanticObjectId]:
    """Return the ids of the roles that the user links and whose end has not passed."""
    return _linked(user) - expired_roles(user, now)


def next_end(user: Mapping[str, Any], now: datetime) -> datetime:
    """Return when the first of the roles that the user holds ends; NEVER if none has an end."""
    held = held_roles(user, now)
    return min((until for role, until in ends_of(user).items() if role in held), default=NEVER)


def _linked(user: Mapping[str, Any]) -> set[PydanticObjectId]:
    return {linked_id(link) for link in user.get("roles") or ()}


def holding_filter(role_id: PydanticObjectId, now: datetime) -> dict[str, Any]:
    """Return the filter for users who have the role and whose end of it, if any, has not passed."""
    return {"roles.$id": role_id, "role_ends": {"$not": {"$elemMatch": _passed(role_id, now)}}}


def _passed(role_id: PydanticObjectId, now: datetime) -> dict[str, Any]:
    return {"role": role_id, "until": {"$lte": now}}
