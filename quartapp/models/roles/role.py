"""Roles: named sets of permissions. Administrators edit roles; the permissions are in the code."""

import asyncio
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

# How many of the events about many users a user document lists.
COMMON_EVENTS = 100
# How many users of a role are counted for a list of roles.
COUNTED_HOLDERS = 1000


class RoleTaken(DomainError):
    """Another role has this name."""

    def __init__(self) -> None:
        super().__init__("A role with this name already exists.")


class BuiltInRole(DomainError):
    """The role is part of the application, and cannot be renamed, changed or deleted."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"The role {name} is built in and cannot be {what}.")


class ManagementByDefault(DomainError):
    """Every new account gets the role, so it cannot have permissions to manage other users."""

    def __init__(self, name: str, permissions: Collection[str]) -> None:
        super().__init__(
            f"The role {name} is given to every new account, so it cannot include "
            f"{', '.join(sorted(permissions))}."
        )


def _factor_detail(requires_factor: bool, included: bool) -> dict[str, Any]:
    """Return the detail `requires_factor` for an audit event, if it is to be included."""
    return {"requires_factor": requires_factor} if included else {}


KNOWN = frozenset(permission.value for permission in Permission)


def _texts(values: Any) -> list[str]:
    """Return the values that are strings. Another program may have stored others."""
    return [value for value in values if isinstance(value, str)]


class RoleGone(DomainError):
    """The role was deleted while the operation was under way."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The role {name} was deleted in the meantime.")


class Role(Record):
    """A role.

    `permissions` is the stored list. It may contain permissions that only a newer version knows:
    they allow nothing in this version, and no operation removes them. `grants` is incremented by
    each grant, so that granting and deleting the role at once conflict.
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
        """Whether the role is part of the application, so that it cannot be renamed or deleted."""
        return self.name in BUILT_IN_ROLES

    @property
    def known(self) -> list[Permission]:
        """The permissions of the role that this version knows."""
        return [Permission(value) for value in self.permissions if value in KNOWN]

    @property
    def unknown(self) -> list[str]:
        """The stored permissions that this version does not know."""
        return [value for value in self.permissions if value not in KNOWN]

    @property
    def manages(self) -> bool:
        """Whether the role has a permission to manage other users or to read about them."""
        return not MANAGEMENT_PERMISSIONS.isdisjoint(self.permissions)

    @classmethod
    async def named(cls, name: str) -> "Role | None":
        """Return the role of this name, in any case; None if there is none."""
        # The collation treats too much as equal, such as a soft hyphen and nothing.
        wanted = validation.canonical_username(name)
        found = await cls.find_one({"name": {"$eq": name}}, collation=CASELESS) if wanted else None
        return found if found and validation.canonical_username(found.name) == wanted else None

    @classmethod
    async def everyone(cls) -> list[Self]:
        """Return all roles, at most 500, sorted by name."""
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
        """Create a role in an authorized transaction, and return it.

        The caller has validated the name and the description. Records the event ROLE_CREATED.
        Notifies nobody. Raises RoleTaken, MissingPermission for permissions that the actor does not
        hold, ManagementByDefault for a management permission of a role that new accounts get,
        SessionOver and RightsChanged.
        """
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
                **_factor_detail(requires_factor, requires_factor),
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
        """Change the stored role in an authorized transaction; this object stays as it was read.

        Increments `authz_version` of all users who hold the role, and sets their `authz_by` to the
        actor: so they gain and lose permissions in open pages. Ends no sessions and sends no
        notification. Records the event ROLE_EDITED with the permissions added (`allowed`) and
        removed (`forbidden`). Does nothing if nothing differs from the database. `requires_factor`
        stays as it is if it is None. The caller waits with `wait_until_enforced()`.

        `permissions` replaces the stored permissions that this version knows; the unknown ones
        stay. Raises RoleGone, RoleTaken, ManagementByDefault, and MissingPermission if the actor
        does not hold all known permissions that the role had and all that it gets. Raises
        BuiltInRole for a new name of a built-in role, and for any change of `admin` except
        `requires_factor`. Also raises SessionOver and RightsChanged.
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
            # The unknown permissions stay, so the actor does not need to hold them.
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
                **_factor_detail(bool(new["requires_factor"]), "requires_factor" in differs),
            )

        await authorized_transaction(by, work)

    async def remove(self, *, by: Actor) -> Event | None:
        """Delete the role, take it from its users and end all of their sessions.

        In an authorized transaction, which ends the sessions (reason ROLE_DELETED), increments the
        users' `authz_version`, notifies each of them, and records the event ROLE_DELETED with a
        barrier mark. The event says in `holders` how many users had the role; it has no subject, so
        it is added to the `common_events` of each of them.

        Returns the event, for whose mark the caller waits; None, without any effect, if the role
        was deleted already. Queues no email. Raises BuiltInRole, MissingPermission if the role or
        one of its users has a permission that the actor does not hold, SessionOver and
        RightsChanged.
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
            # The sessions come first, because workers read the changes in this order. When they
            # read the change of a user, they need not check sessions that have ended already.
            await mark_ended(theirs, Reason.ROLE_DELETED, by=by, event=event, tx=tx)
            await documents(USERS).update_many(
                {"_id": {"$in": ids}},
                {
                    "$pull": {"roles": role_ref(self.id)},
                    "$inc": {"authz_version": 1},
                    "$set": {"authz_by": user_ref(by.user_id)},
                    # An event for each of thousands of users would make this slow.
                    "$push": {"common_events": {"$each": [event.id], "$slice": -COMMON_EVENTS}},
                },
                session=tx,
            )
            await notify_all(ids, ROLE_DELETED, tx, by=by.username, role=self.name)
            return await event.insert(session=tx)

        return await authorized_transaction(by, work, ends_sessions=True)

    async def count_grant(self, tx: Tx) -> bool:
        """Increment `grants` in the caller's transaction; return False if the role was deleted."""
        return await Role.change({"_id": self.id}, {"$inc": {"grants": 1}}, tx=tx)

    @classmethod
    async def holders(cls, roles: Collection["Role"]) -> dict[PydanticObjectId, str]:
        """Return the number of users who hold each role, by the role's id: "1,000+" if more than
        COUNTED_HOLDERS do.

        Reads at most that many entries of an index for each role, at the same time for all.
        """
        users = documents(USERS)
        counts = await asyncio.gather(
            *(
                users.count_documents({"roles.$id": role.id}, limit=COUNTED_HOLDERS + 1)
                for role in roles
            )
        )
        return {
            role.id: f"{COUNTED_HOLDERS:,}+" if count > COUNTED_HOLDERS else f"{count:,}"
            for role, count in zip(roles, counts, strict=True)
        }


def _require_harmless_default(names: Collection[str], permissions: Collection[str]) -> None:
    """Raise ManagementByDefault if one of the names, in any case, is that of a default role and one
    of the permissions is a management permission.
    """
    for name in DEFAULT_ROLES.intersection(each.casefold() for each in names):
        if management := MANAGEMENT_PERMISSIONS.intersection(permissions):
            raise ManagementByDefault(name, management)


async def _held_with(role_id: PydanticObjectId, tx: Tx) -> set[str]:
    """Return all stored permissions of all roles of the users who hold this role, whether or not a
    role requires a second factor.
    """
    ids = await documents(USERS).distinct("roles.$id", {"roles.$id": role_id}, session=tx)
    roles = await Role.find({"_id": {"$in": ids}}, session=tx).to_list()
    return {permission for role in roles for permission in role.permissions}
