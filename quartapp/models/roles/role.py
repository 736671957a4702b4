"""Roles: named sets of permissions. Administrators edit roles; the permissions are in the code."""

import asyncio
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Self

from beanie import PydanticObjectId
from pydantic import BeforeValidator, Field
from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError

from quartapp import clock, validation
from quartapp.activities import ROLE_CREATED, ROLE_DELETED, ROLE_EDITED
from quartapp.db.mongo import Tx
from quartapp.i18n import DEFAULT, use_locale
from quartapp.i18n import lazy_gettext as _
from quartapp.models.audit.event import Event
from quartapp.models.authorization.permissions import role_version
from quartapp.models.authorization.privileges import (
    CHANGE,
    DELETE,
    Holdings,
    Lacks,
    MissingPermission,
    holdings_of,
)
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.counting import CappedCount, count_up_to
from quartapp.models.base.record import Record, documents
from quartapp.models.base.references import (
    CASELESS,
    ROLES,
    USERS,
    DomainError,
    UserRef,
    user_ref,
)
from quartapp.models.base.write_lock import hold_roles
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.roles.refusals import (
    BuiltInRole,
    RoleChanged,
    RoleGone,
    RoleTaken,
    refusals_of_change,
    refusals_of_new,
)
from quartapp.policy import BUILT_IN_ROLES, MANAGEMENT_PERMISSIONS, Permission

with use_locale(DEFAULT):
    # By the English text, which is stored.
    _BUILT_IN_DESCRIPTIONS = {str(text): text for text, _permissions in BUILT_IN_ROLES.values()}
# Up to this many users of a role are counted, for the list of roles and when it is deleted.
COUNTED_HOLDERS = 1000


def _factor_detail(requires_factor: bool, included: bool) -> dict[str, Any]:
    """Return the detail `requires_factor` for an audit event; no detail unless `included`."""
    return {"requires_factor": requires_factor} if included else {}


# The value of `requestable` in `Role.edit` that leaves it as it is.
KEEP: Any = object()
KNOWN = frozenset(permission.value for permission in Permission)


def _texts(values: Any) -> list[str]:
    """Return the values that are strings. Another program may have stored others."""
    return [value for value in values if isinstance(value, str)]


def _number(value: Any) -> int:
    """Return the value if it is an integer, else 0, as another program may have stored it."""
    return value if isinstance(value, int) else 0


class Role(Record):
    """A role.

    `permissions` is the stored list. It may contain permissions that only a newer version knows:
    they allow nothing in this version, and no operation removes them.

    `requestable` is whether users can request it; None leaves that to `can_be_requested`.

    `version` is raised by each edit, and `changed_by` and `changed_at` tell who made the last one
    and when. It counts for all users who hold the role: see
    `models.authorization.permissions.principal_version`.

    `grants` is incremented by each grant and `acts` when the role is taken from a user, so that
    these conflict with editing or deleting the role at once.
    """

    name: str
    description: str = ""
    permissions: Annotated[list[str], BeforeValidator(_texts)] = []
    requires_factor: bool = False
    requestable: bool | None = None
    version: Annotated[int, BeforeValidator(_number)] = 0
    changed_by: UserRef | None = None
    changed_at: datetime | None = None
    grants: int = Field(default=0, ge=0)
    acts: int = 0

    class Settings:
        name = ROLES
        indexes = [IndexModel([("name", 1)], name="name", unique=True, collation=CASELESS)]

    @property
    def built_in(self) -> bool:
        """Whether the role is part of the application, so that it cannot be renamed or deleted."""
        return self.name in BUILT_IN_ROLES

    @property
    def shown_description(self) -> str:
        """The description. One of a built-in role that was not edited is translated."""
        return str(_BUILT_IN_DESCRIPTIONS.get(self.description, self.description))

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

    @property
    def can_be_requested(self) -> bool:
        """Whether users can request the role: as administrators chose or, if they did not, unless
        it has a permission to manage other users or to read about them."""
        return not self.manages if self.requestable is None else self.requestable

    @classmethod
    async def named(cls, name: str) -> "Role | None":
        """Return the role whose name has the same canonical form (`validation.canonical_username`),
        which ignores case; None if there is none."""
        # The collation treats too much as equal, such as a soft hyphen and nothing.
        wanted = validation.canonical_username(name)
        found = await cls.find_one({"name": {"$eq": name}}, collation=CASELESS) if wanted else None
        return found if found and validation.canonical_username(found.name) == wanted else None

    @classmethod
    async def chosen(cls, name: str) -> "Role":
        """Return the role of this name, which was chosen in a form. Raises RoleGone if there is
        none."""
        role = await cls.named(name)
        if role is None:
            raise RoleGone(name)
        return role

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
        requestable: bool | None = None,
        by: Actor,
    ) -> "Role":
        """Create a role in an authorized transaction, and return it.

        The caller has validated the name and the description. Records the event ROLE_CREATED. Sends
        no notification and inserts no barrier mark. Raises RoleTaken, MissingPermission for
        permissions that the actor does not hold, ManagementByDefault for a management permission of
        a role that new accounts get, SessionOver and RightsChanged.
        """
        role = cls(
            name=name,
            description=description,
            permissions=sorted(permissions),
            requires_factor=requires_factor,
            requestable=requestable,
        )

        async def work(tx: Tx) -> None:
            held = await holdings_of(by, tx)
            for refusal in refusals_of_new(name, permissions, held.lacks):
                raise refusal
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
        seen_version: int | None = None,
        requestable: bool | None = KEEP,
        by: Actor,
    ) -> None:
        """Change the stored role in an authorized transaction; this object stays as it was read.

        Increments `version` of the role and writes no document of the users who hold it, who gain
        and lose permissions in open pages. Ends no sessions, sends no notification and inserts no
        barrier mark. Records the event ROLE_EDITED with the permissions added (`allowed`) and
        removed (`forbidden`), the new `version`, and `requires_factor` and `requestable` if these
        change. `requires_factor` stays as it is if it is None, and `requestable` if it is KEEP. If
        nothing differs from the database, changes and checks nothing but `seen_version`. The caller
        waits with `wait_until_enforced()`.

        Holds the lock of the roles: no transaction that has relied on the role as it was before
        commits after this one.

        `permissions` replaces the stored permissions that this version knows; the unknown ones
        stay. `seen_version` is the version of the role that the editor has seen; without one, the
        change is made whatever it replaces.

        Raises RoleGone, RoleChanged, RoleTaken, ManagementByDefault, and MissingPermission if the
        actor does not hold all known permissions that the role had and all that it gets. Raises
        BuiltInRole for a new name of a built-in role, and for any change of `admin` except
        `requires_factor` and `requestable`. Also raises SessionOver and RightsChanged.
        """

        async def work(tx: Tx) -> None:
            held = await holdings_of(by, tx)
            old = await Role.get(self.id, session=tx)
            if old is None:
                raise RoleGone(self.name)
            if seen_version not in (None, old.version):
                raise RoleChanged(old.name, old.version)
            changes = old._changes(name, description, permissions, requires_factor, requestable)
            for refusal in refusals_of_change(
                old, changes, name=name, permissions=permissions, lacks=held.lacks
            ):
                raise refusal
            if not changes:
                return
            await hold_roles(tx)
            changed = {"changed_by": user_ref(by.user_id), "changed_at": clock.now()}
            update = {"$set": {**changes, **changed}, "$inc": {"version": 1}}
            try:
                await Role.change({"_id": self.id}, update, tx=tx)
            except DuplicateKeyError:
                raise RoleTaken from None
            await Event.record(
                ROLE_EDITED,
                by=by,
                tx=tx,
                role=name,
                allowed=sorted(set(permissions) - set(old.known)),
                forbidden=sorted(set(old.known) - set(permissions)),
                version=old.version + 1,
                **{
                    field: changes[field]
                    for field in ("requires_factor", "requestable")
                    if field in changes
                },
            )

        await authorized_transaction(by, work)

    def _changes(
        self,
        name: str | None,
        description: str | None,
        permissions: Collection[Permission] | None,
        requires_factor: bool | None,
        requestable: bool | None,
    ) -> dict[str, Any]:
        """Return the new values of those fields that `edit` would change. A name, a description or
        permissions that are None are such fields."""
        new: dict[str, Any] = {"name": name, "description": description, "permissions": None}
        if permissions is not None:
            new["permissions"] = [*sorted(permissions), *self.unknown]
        if requires_factor is not None:
            new["requires_factor"] = requires_factor
        if requestable is not KEEP:
            new["requestable"] = requestable
        before = self.model_dump() | {"permissions": [*sorted(self.known), *self.unknown]}
        return {field: value for field, value in new.items() if before[field] != value}

    @classmethod
    async def refusals_to_add(
        cls, name: str | None, permissions: Collection[Permission] | None, *, lacks: Lacks
    ) -> list[DomainError]:
        """Return the errors with which `add` would refuse this now. A name or permissions that are
        not valid are None, and are not checked. `lacks` tells what the actor lacks."""
        taken = [RoleTaken()] if name and await cls.named(name) else []
        return [*taken, *refusals_of_new(name or "", permissions or [], lacks)]

    async def refusals_to_edit(
        self,
        name: str | None,
        description: str | None,
        permissions: Collection[Permission] | None,
        *,
        requires_factor: bool,
        requestable: bool | None,
        seen_version: int | None,
        lacks: Lacks,
    ) -> list[DomainError]:
        """Return the errors with which `edit` would refuse this now, if the stored role is as this
        object.

        A name, a description or permissions that are not valid are None: they count as changes, and
        are not checked. `lacks` tells what the actor lacks.
        """
        found: list[DomainError] = []
        if seen_version not in (None, self.version):
            found.append(RoleChanged(self.name, self.version))
        if name and (holder := await Role.named(name)) and holder.id != self.id:
            found.append(RoleTaken())
        changes = self._changes(name, description, permissions, requires_factor, requestable)
        given = self.known if permissions is None else permissions
        return [
            *found,
            *refusals_of_change(
                self, changes, name=name or self.name, permissions=given, lacks=lacks
            ),
        ]

    async def remove(self, *, by: Actor) -> Event | None:
        """Delete the role, which ends all sessions of its users.

        In an authorized transaction, which deletes the role, stores a `RoleDeletion`, and records
        the event ROLE_DELETED with a barrier mark. It writes no document of the users who hold the
        role: their sessions are over by the session rule, with the reason ROLE_DELETED. A job takes
        the role from them later (`RoleDeletion.remove_role_from`): then they are notified, and list
        the event, which has no subject, in `common_events`.

        The event says in `holders` how many users had the role, and in `more` that they were not
        counted to the end: see `holders_when_deleted`. Holds the lock of the roles, as `edit` does.

        Returns the event, for whose mark the caller waits; None, without any effect, if the role
        was deleted already. Queues no email. Raises BuiltInRole, MissingPermission if the role or
        one of its users has a permission that the actor does not hold, SessionOver and
        RightsChanged.
        """
        if self.built_in:
            raise BuiltInRole(
                _("The role %(name)s is built in and cannot be deleted.", name=self.name)
            )

        async def work(tx: Tx) -> Event | None:
            held = await holdings_of(by, tx)
            old = await Role.get(self.id, session=tx)
            if old is None:
                return None
            if missing := held.lacks(old.permissions):
                raise MissingPermission(CHANGE, missing, old.name)
            if not held.everything and (missing := await old._held_besides(held, tx)):
                raise MissingPermission(DELETE, missing, old.name)
            await hold_roles(tx)
            counted = await old._count_holders(tx=tx)
            event = Event.of(ROLE_DELETED, by=by, role=old.name, holders=counted.number)
            if counted.more:
                event.details["more"] = True
            await RoleDeletion.store(
                self.id,
                name=old.name,
                version=old.version,
                by=by.user_id,
                at=event.at,
                event=event.id,
                tx=tx,
            )
            await Role.erase(self.id, tx=tx)
            return await event.insert(session=tx)

        return await authorized_transaction(by, work, ends_sessions=True)

    async def _held_besides(self, held: Holdings, tx: Tx) -> set[str]:
        """Return permissions that the actor lacks and some user of this role has through another
        role, whether or not that requires a second factor; empty if there are none.

        For each role with permissions that the actor lacks, looks for one user who holds both
        roles. If there are none, increments `acts` of these roles: granting one of them at once
        conflicts.
        """
        more = {
            role.id: lacked
            for role in await Role.find({}, session=tx).to_list()
            if (lacked := held.lacks(role.permissions))
        }
        found: set[str] = set()
        for role_id, lacked in more.items():
            both = {"roles.$id": {"$all": [role_id, self.id]}}
            if await documents(USERS).find_one(both, {"_id": 1}, session=tx):
                found |= lacked
        if more and not found:
            await Role.change_all({"_id": {"$in": list(more)}}, {"$inc": {"acts": 1}}, tx=tx)
        return found

    async def _count_holders(self, *, tx: Tx | None = None) -> CappedCount:
        """Return how many users hold the role, counted up to COUNTED_HOLDERS."""
        return await count_up_to(COUNTED_HOLDERS, USERS, {"roles.$id": self.id}, tx=tx)

    async def count_grant(self, tx: Tx) -> bool:
        """Increment `grants` in the caller's transaction, so that it conflicts with an edit or the
        deletion of the role; return False if the role was deleted."""
        return await Role.change({"_id": self.id}, {"$inc": {"grants": 1}}, tx=tx)

    async def count_removal(self, tx: Tx) -> int | None:
        """Increment `acts` in the caller's transaction, which takes the role from a user; return
        the role's version, or None if the role was deleted.

        The caller adds the version to that of the user, which an edit of the role at once would
        make wrong: it conflicts.
        """
        found = await documents(ROLES).find_one_and_update(
            {"_id": self.id}, {"$inc": {"acts": 1}}, session=tx
        )
        return role_version(found) if found else None

    @classmethod
    async def raise_version(cls, role_id: PydanticObjectId, *, seen: int, version: int) -> None:
        """Set `version` of the role if it still is `seen`, clear `changed_by`, and set
        `changed_at`.

        For a change that another program made without raising the version. Many workers see such a
        change; the condition lets only one of them write.
        """
        match = {"_id": role_id, "version": seen if seen else {"$in": [0, None]}}
        change = {"version": version, "changed_by": None, "changed_at": clock.now()}
        await cls.change(match, {"$set": change})

    @classmethod
    async def holders(cls, roles: Collection["Role"]) -> dict[PydanticObjectId, CappedCount]:
        """Return the number of users who hold each role, by the role's id, counted up to
        COUNTED_HOLDERS.

        Reads hardly more entries of an index than that for each role, at the same time for all.
        """
        counts = await asyncio.gather(*(role._count_holders() for role in roles))
        return {role.id: count for role, count in zip(roles, counts, strict=True)}


def holders_when_deleted(event: Event | None) -> CappedCount:
    """Return how many users had the role that the event ROLE_DELETED tells of, as counted then; 0
    without an event."""
    details = event.details if event else {}
    return CappedCount(details.get("holders", 0), more=details.get("more", False))
