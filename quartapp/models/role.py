"""Roles: named sets of permissions. Data, which administrators edit; permissions are code."""

from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field
from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError

from quartapp.database import Session as Tx
from quartapp.models.actor import Actor
from quartapp.models.event import Event, Verb
from quartapp.models.notice import Kind
from quartapp.models.record import Record
from quartapp.models.references import CASELESS, DomainError, ref
from quartapp.models.session import Reason, acting, mark_ended
from quartapp.models.user import COMMON_EVENTS, RoleGone, User
from quartapp.policy import ADMIN, BUILT_IN_ROLES, Permission


class RoleTaken(DomainError):
    """There is a role of this name."""

    def __init__(self) -> None:
        super().__init__("There is a role of this name already.")


class BuiltInRole(DomainError):
    """The role is part of the application."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"The role {name} is built in and cannot be {what}.")


def _said(requires_factor: bool, worth_saying: bool) -> dict[str, Any]:
    return {"requires_factor": requires_factor} if worth_saying else {}


def _known(values: Any) -> list[Permission]:
    """A permission that this version does not know, from a newer one say, allows nothing."""
    known = {p.value: p for p in Permission}
    return [known[value] for value in values if value in known]


class Role(Record):
    """A role. `grants` counts how often it was given: see User.grant."""

    name: str
    description: str = ""
    permissions: Annotated[list[Permission], BeforeValidator(_known)] = []
    requires_factor: bool = False
    grants: int = Field(default=0, ge=0)

    class Settings:
        name = "roles"
        indexes = [IndexModel([("name", 1)], name="name", unique=True, collation=CASELESS)]

    @property
    def built_in(self) -> bool:
        return self.name in BUILT_IN_ROLES

    @classmethod
    async def named(cls, name: str) -> "Role | None":
        return await cls.find_one({"name": {"$eq": name}}, collation=CASELESS)

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
        """Raises RoleTaken."""
        role = cls(
            name=name,
            description=description,
            permissions=sorted(permissions),
            requires_factor=requires_factor,
        )

        async def work(tx: Tx) -> None:
            try:
                await role.insert(session=tx)
            except DuplicateKeyError:
                raise RoleTaken from None
            await Event.record(
                Verb.ROLE_CREATED,
                by=by,
                tx=tx,
                role=name,
                permissions=sorted(permissions),
                **_said(requires_factor, requires_factor),
            )

        await acting(by, work)
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

        Raises RoleTaken, RoleGone, and BuiltInRole for the name of a built-in role or for a change
        of the one that may do everything; that one may only ask for a second factor.
        """
        required = self.requires_factor if requires_factor is None else requires_factor
        new = {
            "name": name,
            "description": description,
            "permissions": sorted(permissions),
            "requires_factor": required,
        }
        old = self.model_dump() | {"permissions": sorted(self.permissions)}
        differs = {field for field, value in new.items() if old[field] != value}
        if self.name == ADMIN and differs - {"requires_factor"}:
            raise BuiltInRole(self.name, "changed")
        if self.built_in and "name" in differs:
            raise BuiltInRole(self.name, "renamed")

        async def work(tx: Tx) -> None:
            try:
                changed = await Role.change({"_id": self.id}, {"$set": new}, tx=tx)
            except DuplicateKeyError:
                raise RoleTaken from None
            if not changed:
                if await Role.get(self.id, session=tx) is None:
                    raise RoleGone(self.name)
                return
            await User.change_all(
                {"roles.$id": self.id},
                {"$inc": {"authz_version": 1}, "$set": {"authz_by": ref("users", by.user_id)}},
                tx=tx,
            )
            await Event.record(
                Verb.ROLE_EDITED,
                by=by,
                tx=tx,
                role=name,
                allowed=sorted(set(permissions) - set(self.permissions)),
                forbidden=sorted(set(self.permissions) - set(permissions)),
                **_said(required, "requires_factor" in differs),
            )

        await acting(by, work)

    async def remove(self, *, by: Actor) -> Event | None:
        """Takes the role from all who hold it, ends their sessions and removes it.

        Returns the audit event, which says how many held it; None if it was gone. Raises
        BuiltInRole.
        """
        if self.built_in:
            raise BuiltInRole(self.name, "deleted")

        async def work(tx: Tx) -> Event | None:
            if not await Role.erase(self.id, tx=tx):
                return None
            ids = await User.get_motor_collection().distinct(
                "_id", {"roles.$id": self.id}, session=tx
            )
            event = Event.of(Verb.ROLE_DELETED, by=by, role=self.name, holders=len(ids))
            theirs = {"user.$id": {"$in": ids}}
            # First, for the order in which it is heard: a session that is known to be over need not
            # be judged for its user's sake, which takes long where there are thousands.
            await mark_ended(theirs, Reason.ROLE_DELETED, by=by, event=event, tx=tx)
            await User.change_all(
                {"_id": {"$in": ids}},
                {
                    "$pull": {"roles": ref("roles", self.id)},
                    "$inc": {"authz_version": 1},
                    "$set": {"authz_by": ref("users", by.user_id)},
                    # A line of the record for each of thousands would make it slow.
                    "$push": {"common_events": {"$each": [event.id], "$slice": -COMMON_EVENTS}},
                },
                tx=tx,
            )
            await User.tell_all(ids, Kind.ROLE_DELETED, tx, by=by.username, role=self.name)
            return await event.insert(session=tx)

        return await acting(by, work)

    async def count_grant(self, tx: Tx) -> bool:
        return await Role.change({"_id": self.id}, {"$inc": {"grants": 1}}, tx=tx)

    @classmethod
    async def holders(cls) -> dict[Any, int]:
        """How many people hold each role, by the role's id."""
        rows = await User.aggregate(
            [{"$unwind": "$roles"}, {"$group": {"_id": "$roles.$id", "count": {"$sum": 1}}}]
        ).to_list()
        return {row["_id"]: row["count"] for row in rows}
