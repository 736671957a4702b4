"""Roles: named sets of permissions. Data, which administrators edit; permissions are code."""

from collections.abc import Collection
from typing import Annotated, Any, Self

from beanie import PydanticObjectId
from pydantic import BeforeValidator, Field
from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError

from quartapp import validation
from quartapp.activities import ROLE_CREATED, ROLE_DELETED, ROLE_EDITED
from quartapp.db.mongo import Tx
from quartapp.models.audit.event import Event
from quartapp.models.authorization.privileges import (
    ADD,
    CHANGE,
    DELETE,
    MissingPermission,
    holdings_of,
)
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record, documents
from quartapp.models.base.references import (
    CASELESS,
    ROLES,
    USERS,
    DomainError,
    role_ref,
    user_ref,
)
from quartapp.models.notifications.notice import notify_all
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import mark_ended
from quartapp.policy import ADMIN, BUILT_IN_ROLES, DEFAULT_ROLES, MANAGEMENT_PERMISSIONS, Permission

# How many events that happened to many users at once a user document names.
COMMON_EVENTS = 100


class RoleTaken(DomainError):
    """There is a role of this name."""

    def __init__(self) -> None:
        super().__init__("A role with this name already exists.")


class BuiltInRole(DomainError):
    """The role is part of the application."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"The role {name} is built in and cannot be {what}.")


class ManagementByDefault(DomainError):
    """The role is given to every new account, so it must not allow to manage others."""

    def __init__(self, name: str, permissions: Collection[str]) -> None:
        super().__init__(
            f"The role {name} is given to every new account, so it cannot include "
            f"{', '.join(sorted(permissions))}."
        )


def _said(requires_factor: bool, worth_saying: bool) -> dict[str, Any]:
    return {"requires_factor": requires_factor} if worth_saying else {}


KNOWN = frozenset(permission.value for permission in Permission)


def _texts(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)]


class RoleGone(DomainError):
    """The role was deleted in the meantime."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The role {name} was deleted in the meantime.")


class Role(Record):
    """A role. `grants` counts how often it was given: see User.grant.

    `permissions` is the stored list. It may hold permissions that this version does not know, of a
    newer one for example: they allow nothing here, and no verb removes them.
    """

    name: str
    description: str = ""
    permissions: Annotated[list[str], BeforeValidator(_texts)] = []
    requires_factor: bool = False
    grants: int = Field(default=0, ge=0)

    class Settings:
        name = ROLES
        indexes = [IndexModel([("name", 1)], name="name", unique=True, collation=CASELESS)]

    @property
    def built_in(self) -> bool:
        return self.name in BUILT_IN_ROLES

    @property
    def known(self) -> list[Permission]:
        """What the role allows in this version."""
        return [Permission(value) for value in self.permissions if value in KNOWN]

    @property
    def unknown(self) -> list[str]:
        """The stored permissions that this version does not know."""
        return [value for value in self.permissions if value not in KNOWN]

    @property
    def manages(self) -> bool:
        """Whether the role allows to manage other people or to read about them."""
        return not MANAGEMENT_PERMISSIONS.isdisjoint(self.permissions)

    @classmethod
    async def named(cls, name: str) -> "Role | None":
        """Return the role of this name, in any case."""
        # The collation compares too much as equal, such as soft hyphens and nothing.
        wanted = validation.canonical_username(name)
        found = await cls.find_one({"name": {"$eq": name}}, collation=CASELESS) if wanted else None
        return found if found and validation.canonical_username(found.name) == wanted else None

    @classmethod
    async def everyone(cls) -> list[Self]:
        """All roles by name. There are as many as people made, bounded for good measure."""
        return await cls.find({}, sort="name", limit=500, collation=CASELESS).to_list()

    @classmethod
    async def add(
        cls,
        name: str,
        description: str,
        permissions: Collection[Permission],
        *,
        requires_factor: bool = False,
        by: Actor,
    ) -> "Role":
        """Creates a role. Raises RoleTaken, MissingPermission for permissions that the actor does
        not hold, and ManagementByDefault."""
        _require_harmless_default([name], permissions)
        role = cls(
            name=name,
            description=description,
            permissions=sorted(permissions),
            requires_factor=requires_factor,
        )

        async def work(tx: Tx) -> None:
            held = await holdings_of(by, tx)
            if missing := held.lacks(permissions):
                raise MissingPermission(ADD, missing, name)
            try:
                await role.insert(session=tx)
            except DuplicateKeyError:
                raise RoleTaken from None
            await Event.record(
                ROLE_CREATED,
                by=by,
                tx=tx,
                role=name,
                permissions=sorted(permissions),
                **_said(requires_factor, requires_factor),
            )

        await authorized_transaction(by, work)
        return role

    async def edit(
        self,
        *,
        name: str,
        description: str,
        permissions: Collection[Permission],
        requires_factor: bool | None = None,
        by: Actor,
    ) -> None:
        """Changes the role; those who hold it gain and lose permissions in place.

        `permissions` are those that the role allows in this version. Stored ones that this version
        does not know stay. Raises RoleTaken, RoleGone, MissingPermission if the actor does not hold
        all that the role allows before and after, ManagementByDefault, and BuiltInRole for the name
        of a built-in role or for a change of the one that may do everything; that one may only ask
        for a second factor.
        """

        async def work(tx: Tx) -> None:
            held = await holdings_of(by, tx)
            old = await Role.get(self.id, session=tx)
            if old is None:
                raise RoleGone(self.name)
            new = {
                "name": name,
                "description": description,
                "permissions": [*sorted(permissions), *old.unknown],
                "requires_factor": old.requires_factor
                if requires_factor is None
                else requires_factor,
            }
            before = old.model_dump() | {"permissions": [*sorted(old.known), *old.unknown]}
            differs = {field for field, value in new.items() if before[field] != value}
            if not differs:
                return
            if old.name == ADMIN and differs - {"requires_factor"}:
                raise BuiltInRole(old.name, "changed")
            if old.built_in and "name" in differs:
                raise BuiltInRole(old.name, "renamed")
            _require_harmless_default([old.name, name], permissions)
            # Unknown permissions stay as they are, so that an edit does not have to hold them.
            if missing := held.lacks(old.known):
                raise MissingPermission(CHANGE, missing, old.name)
            if missing := held.lacks(permissions):
                raise MissingPermission(ADD, missing, old.name)
            try:
                await Role.change({"_id": self.id}, {"$set": new}, tx=tx)
            except DuplicateKeyError:
                raise RoleTaken from None
            await documents(USERS).update_many(
                {"roles.$id": self.id},
                {"$inc": {"authz_version": 1}, "$set": {"authz_by": user_ref(by.user_id)}},
                session=tx,
            )
            await Event.record(
                ROLE_EDITED,
                by=by,
                tx=tx,
                role=name,
                allowed=sorted(set(permissions) - set(old.known)),
                forbidden=sorted(set(old.known) - set(permissions)),
                **_said(bool(new["requires_factor"]), "requires_factor" in differs),
            )

        await authorized_transaction(by, work)

    async def remove(self, *, by: Actor) -> Event | None:
        """Takes the role from all who hold it, ends their sessions and removes it.

        Returns the audit event, which says how many held it; None if it was gone. Raises
        BuiltInRole, and MissingPermission if the role allows, or one of those who hold it holds, a
        permission that the actor does not hold.
        """
        if self.built_in:
            raise BuiltInRole(self.name, "deleted")

        async def work(tx: Tx) -> Event | None:
            held = await holdings_of(by, tx)
            old = await Role.get(self.id, session=tx)
            if old is None:
                return None
            if missing := held.lacks(old.permissions):
                raise MissingPermission(CHANGE, missing, old.name)
            if missing := held.lacks([] if held.everything else await _held_with(self.id, tx)):
                raise MissingPermission(DELETE, missing, old.name)
            await Role.erase(self.id, tx=tx)
            ids = await documents(USERS).distinct("_id", {"roles.$id": self.id}, session=tx)
            event = Event.of(ROLE_DELETED, by=by, role=self.name, holders=len(ids))
            theirs = {"user.$id": {"$in": ids}}
            # First, for the order in which it is heard: a session that is known to be over need not
            # be judged for its user's sake, which takes long where there are thousands.
            await mark_ended(theirs, Reason.ROLE_DELETED, by=by, event=event, tx=tx)
            await documents(USERS).update_many(
                {"_id": {"$in": ids}},
                {
                    "$pull": {"roles": role_ref(self.id)},
                    "$inc": {"authz_version": 1},
                    "$set": {"authz_by": user_ref(by.user_id)},
                    # A line of the record for each of thousands would make it slow.
                    "$push": {"common_events": {"$each": [event.id], "$slice": -COMMON_EVENTS}},
                },
                session=tx,
            )
            await notify_all(ids, ROLE_DELETED, tx, by=by.username, role=self.name)
            return await event.insert(session=tx)

        return await authorized_transaction(by, work, ends_sessions=True)

    async def count_grant(self, tx: Tx) -> bool:
        return await Role.change({"_id": self.id}, {"$inc": {"grants": 1}}, tx=tx)

    @classmethod
    async def holders(cls) -> dict[Any, int]:
        """How many people hold each role, by the role's id."""
        rows = (
            await documents(USERS)
            .aggregate(
                [{"$unwind": "$roles"}, {"$group": {"_id": "$roles.$id", "count": {"$sum": 1}}}]
            )
            .to_list(None)
        )
        return {row["_id"]: row["count"] for row in rows}


def _require_harmless_default(names: Collection[str], permissions: Collection[str]) -> None:
    """Raises ManagementByDefault."""
    for name in DEFAULT_ROLES.intersection(each.casefold() for each in names):
        if management := MANAGEMENT_PERMISSIONS.intersection(permissions):
            raise ManagementByDefault(name, management)


async def _held_with(role_id: PydanticObjectId, tx: Tx) -> set[str]:
    """All permissions of those who hold the role, by whichever role."""
    ids = await documents(USERS).distinct("roles.$id", {"roles.$id": role_id}, session=tx)
    roles = await Role.find({"_id": {"$in": ids}}, session=tx).to_list()
    return {permission for role in roles for permission in role.permissions}
