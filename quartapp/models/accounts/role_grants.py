"""Granting and revoking roles, and the expiry of grants that have an end.

The end is stored in the user's document (`role_ends`), and the session rule compares it with the
clock, so a grant expires on time also if no worker runs. `expire_grant` records that, for the job
`role_expiry` and for a sign-in.

An authorized transaction raises SessionOver if the actor's session has ended, and RightsChanged if
it has lost a permission. If it manages a user, it raises MissingPermission if that is another user
who holds a permission that the actor lacks. The object keeps its old values.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from quartapp import clock, policy
from quartapp.activities import (
    ROLE_END_CHANGED,
    ROLE_END_REMOVED,
    ROLE_END_SKIPPED,
    ROLE_ENDS_SOON,
    ROLE_EXPIRED,
    ROLE_GRANTED,
    ROLE_GRANTED_UNTIL,
    ROLE_REVOKED,
)
from quartapp.db.mongo import Tx
from quartapp.models.accounts.account import Account, Unverified
from quartapp.models.accounts.administrators import (
    LAST_ADMINISTRATOR,
    active_administrators,
    count_administrators,
    require_an_administrator,
)
from quartapp.models.accounts.role_ends import RoleEnd, ends_of
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import inform, record
from quartapp.models.authorization.privileges import (
    Lacks,
    refusals_to_give,
    require_to_give,
)
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.record import documents
from quartapp.models.base.references import (
    ROLE_REQUESTS,
    USERS,
    DomainError,
    role_ref,
    user_ref,
)
from quartapp.models.base.write_lock import hold_administrators
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.roles.refusals import RoleGone
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import EndDetail, Reason
from quartapp.models.sessions.session import count_active, mark_ended


class RoleHolder(Account):
    """A user to whom roles are granted. `User` adds the other operations."""

    async def require_verified(self, tx: Tx) -> None:
        """Read the account again, and raise Unverified if it must verify its address before it can
        be used. Returns nothing if it was deleted."""
        found = await self.get(self.id, session=tx)
        if found is not None and found.awaits_verification:
            raise Unverified(found.username)

    async def grant(self, role: Role, *, by: Actor, until: datetime | None = None) -> Event | None:
        """Give the user the role, with `until` only until that time, and return the event; None if
        they have it with the same end, or if the account was deleted.

        In an authorized transaction that manages the user, which has the effects of
        `grant_in_transaction` and raises its errors. Without a barrier mark. Does not check that
        the time is possible (`validation.check_grant_end`).
        """

        async def work(tx: Tx) -> Event | None:
            return await self.grant_in_transaction(role, by=by, until=until, tx=tx)

        return await authorized_transaction(by, work, managing=self.id)

    async def grant_in_transaction(
        self, role: Role, *, by: Actor, tx: Tx, until: datetime | None = None, **details: Any
    ) -> Event | None:
        """The writes of `grant`, for the caller's authorized transaction, which manages the user.
        Returns what `grant` returns.

        Notifies the user and records ROLE_GRANTED or, with an end, ROLE_GRANTED_UNTIL, with
        `details`; increments `authz_version`, so that open pages gain the permissions in place; no
        session ends. Writes the role's document. An open request of the user for the role is marked
        as granted.

        If the user has the role already, changes only its end (`_change_end`); `details` are not
        used. If an earlier grant of the role has expired and this was not recorded, records that
        first (`expire_in_transaction`), which ends all sessions of the user, and then grants the
        role anew.

        Raises RoleGone, Unverified for another role than `member` if the account must verify its
        address first, MissingPermission if the role has a permission that the actor does not hold,
        and LastAdministrator if `until` would end the only grant of the role `admin` that has no
        end.
        """
        await require_to_give(by, [role.id], tx)
        if role.name != policy.MEMBER:
            await self.require_verified(tx)
        if (old := await self.get(self.id, session=tx)) is None:
            return None
        if (ended := old.ends.get(role.id)) and ended <= clock.now():
            await old.expire_in_transaction(RoleEnd(role=role.id, until=ended), tx=tx)
            old = await self.get(self.id, session=tx) or old
        entry = RoleEnd.of(role.id, until) if until else None
        if old.holds(role):
            return await self._change_end(role, entry, old.ends.get(role.id), by=by, tx=tx)
        change: dict[str, Any] = {"$addToSet": {"roles": role_ref(role.id)}}
        # An entry can be left over from a grant that another program has revoked.
        ends = [each for each in old.role_ends if each.role != role.id]
        change["$set"] = {"role_ends": [each.model_dump() for each in (*ends, entry) if each]}
        if not await self.change_authority({"roles.$id": {"$ne": role.id}}, change, by=by, tx=tx):
            return None
        # Writing the role's document makes this conflict with deleting the role.
        if not await role.count_grant(tx):
            raise RoleGone(role.name)
        await self._close_request(role, entry, by, tx)
        activity = ROLE_GRANTED_UNTIL if entry else ROLE_GRANTED
        ending = {"until": entry.until} if entry else {}
        return await record(activity, self, by=by, tx=tx, role=role.name, **ending, **details)

    def refusals_to_grant(self, role: Role, *, lacks: Lacks) -> list[DomainError]:
        """Return MissingPermission and Unverified, with which `grant` would refuse the role now, if
        the stored account is as this object. `lacks` tells what the actor lacks."""
        found: list[DomainError] = [*refusals_to_give(role.name, role.permissions, lacks)]
        if role.name != policy.MEMBER and self.awaits_verification:
            found.append(Unverified(self.username))
        return found

    async def _close_request(self, role: Role, entry: RoleEnd | None, by: Actor, tx: Tx) -> None:
        """Mark the user's open request for the role, if there is one, as granted by the actor now,
        until the end of the entry, if any: see `models.roles.request`."""
        match = {"role.$id": role.id, "user.$id": self.id, "state": "open"}
        granted = {"state": "granted", "decided_at": clock.now(), "until": entry and entry.until}
        granted["decided_by"] = user_ref(by.user_id)
        await documents(ROLE_REQUESTS).update_one(match, {"$set": granted}, session=tx)

    async def _change_end(
        self, role: Role, entry: RoleEnd | None, old: datetime | None, *, by: Actor, tx: Tx
    ) -> Event | None:
        """Give the role that the user has the end of the entry, or none if that is None. `old` is
        the end that it has.

        Notifies the user, and returns the recorded event: ROLE_END_CHANGED or, without an entry,
        ROLE_END_REMOVED, with `old` in the detail `end`, if there is one. Returns None, without a
        change, if the role has that end. Writes the role's document, and holds the lock of the
        administrators for the role `admin`. Leaves `authz_version` and an open request for the
        role. Raises RoleGone if the role was deleted, and LastAdministrator.
        """
        if (entry and entry.until) == old:
            return None
        before = await _hold_administrators_for(role, tx)
        await self.change({"_id": self.id}, {"$pull": {"role_ends": {"role": role.id}}}, tx=tx)
        if entry:
            pushed = {"$push": {"role_ends": entry.model_dump()}}
            await self.change({"_id": self.id}, pushed, tx=tx)
        await require_an_administrator(before, tx)
        if not await role.count_grant(tx):
            raise RoleGone(role.name)
        had: dict[str, Any] = {"end": old} if old else {}
        if entry is None:
            return await record(ROLE_END_REMOVED, self, by=by, tx=tx, role=role.name, **had)
        changed = {"role": role.name, "until": entry.until, **had}
        return await record(ROLE_END_CHANGED, self, by=by, tx=tx, **changed)

    async def revoke(self, role: Role, *, by: Actor) -> Event | None:
        """Take the role from the user, end all of their sessions, and return the event
        ROLE_REVOKED.

        In an authorized transaction that manages the user, with a barrier mark. Notifies the user;
        `event.ended_sessions` says how many sessions were active, and the detail `end` until when
        the role was granted, if it had an end. Returns None, without a change, if the user does not
        have the role, or if it was deleted. A role whose grant has expired can be revoked until
        that is recorded. Raises LastAdministrator and MissingPermission.
        """

        async def work(tx: Tx) -> Event | None:
            before = await _hold_administrators_for(role, tx)
            stored = await documents(USERS).find_one({"_id": self.id}, {"role_ends": 1}, session=tx)
            end = ends_of(stored or {}).get(role.id)
            if not await self._take(role, {}, by=by, tx=tx):
                return None
            await require_an_administrator(before, tx)
            # For undoing it.
            had = {"end": end} if end else {}
            event = Event.of(ROLE_REVOKED, by=by, subject=self.id, role=role.name, **had)
            mine = {"user.$id": self.id}
            event.note_ended_sessions(await count_active(mine, tx))
            await mark_ended(mine, Reason.ROLE_REVOKED, by=by, event=event, tx=tx)
            return await record(ROLE_REVOKED, self, by=by, tx=tx, event=event)

        return await authorized_transaction(by, work, managing=self.id, ends_sessions=True)

    async def _take(self, role: Role, condition: Mapping[str, Any], *, by: Actor, tx: Tx) -> bool:
        """Remove the role and its end from the user if the condition is true; return whether that
        was so. False also for a deleted role, and for a user who does not have it.

        Raises `authz_version` by the role's version and 1, and sets `authz_by` and `authz_at`
        (`change_authority`). Writes the role's document, also if it returns False, unless the role
        was deleted. Records no event and ends no session.
        """
        if (version := await role.count_removal(tx)) is None:
            return False
        return await self.change_authority(
            {"roles.$id": role.id, **condition},
            {"$pull": {"roles": role_ref(role.id), "role_ends": {"role": role.id}}},
            by=by,
            tx=tx,
            # The version of the role no longer counts for the user.
            version=version + 1,
        )

    # ---- expiry

    async def expire_grant(self, end: RoleEnd) -> Event | None:
        """Record that the grant of a role has expired, and return the event ROLE_EXPIRED.

        In one transaction of SYSTEM, with a barrier mark, which has the effects of
        `expire_in_transaction` and returns what that returns: None, or another event, in special
        cases. Whether the time has come is not checked again: `end` is one that
        `role_expiry.due` has returned.
        """

        async def work(tx: Tx) -> Event | None:
            return await self.expire_in_transaction(end, tx=tx)

        return await authorized_transaction(SYSTEM, work, ends_sessions=True)

    async def expire_in_transaction(self, end: RoleEnd, *, tx: Tx) -> Event | None:
        """The writes of `expire_grant`, for the caller's transaction.

        Takes the role with its end from the user, increments `authz_version`, ends all sessions of
        the user (reason ROLE_REVOKED, detail ROLE_EXPIRED), notifies the user, and records the
        event ROLE_EXPIRED.

        If it is the role `admin` and no administrator is active, removes the end instead, ends no
        session, notifies the user, and returns the event ROLE_END_SKIPPED. Only an edit of the
        database by hand can lead to this.

        Returns None if the end was changed or recorded meanwhile: then it changes nothing of the
        user. Also None if the user does not have the role: then it only removes the end. So it does
        if the role was deleted, after taking the role from the user
        (`RoleDeletion.remove_role_from`), and increments `authz_version`. Does not check whether
        the time has come.
        """
        this = {"role_ends": {"$elemMatch": {"role": end.role, "until": end.until}}}
        role = await Role.get(end.role, session=tx)
        if role is None:
            await self._drop_deleted(end, this, tx)
            return None
        if role.name == policy.ADMIN:
            await hold_administrators(tx)
            if not await active_administrators(tx=tx):
                match = {"_id": self.id, "roles.$id": role.id, **this}
                removed = {"$pull": {"role_ends": {"role": role.id}}}
                if await self.change(match, removed, tx=tx):
                    kept: dict[str, Any] = {"role": role.name, "why": LAST_ADMINISTRATOR}
                    return await record(ROLE_END_SKIPPED, self, by=SYSTEM, tx=tx, **kept)
        if not await self._take(role, this, by=SYSTEM, tx=tx):
            left_over = {"_id": self.id, "roles.$id": {"$ne": role.id}, **this}
            await self.change(left_over, {"$pull": {"role_ends": {"role": role.id}}}, tx=tx)
            return None
        ended = {"role": role.name, "expired": end.until}
        event = Event.of(ROLE_EXPIRED, by=SYSTEM, subject=self.id, **ended)
        mine, because = {"user.$id": self.id}, EndDetail.ROLE_EXPIRED
        event.note_ended_sessions(await count_active(mine, tx))
        await mark_ended(mine, Reason.ROLE_REVOKED, by=SYSTEM, event=event, because=because, tx=tx)
        return await record(ROLE_EXPIRED, self, by=SYSTEM, tx=tx, event=event)

    async def _drop_deleted(self, end: RoleEnd, this: Mapping[str, Any], tx: Tx) -> None:
        """Remove the end of a role that was deleted, and the link to it: if another program has
        deleted the role, it may come back from a backup. If the application has deleted it, does
        first what the job does for each of its users: see `RoleDeletion.remove_role_from`.

        If the user still has the end then (`this`), also increments `authz_version`. Ends no
        session itself.
        """
        for deletion in await RoleDeletion.of_roles([end.role], tx=tx):
            await deletion.remove_role_from([self.id], tx)
        removed = {"$pull": {"roles": role_ref(end.role), "role_ends": {"role": end.role}}}
        await self.change_authority(dict(this), removed, by=SYSTEM, tx=tx)

    async def warn_of_end(self, end: RoleEnd) -> bool:
        """Notify the user that the role ends soon, in one transaction; return whether that was
        done. Not if they were warned already, the end was changed, or they do not have the role.

        Marks the end as warned of; does only that, and returns False, if the role was deleted.
        Records no event.
        """

        async def work(tx: Tx) -> bool:
            match = {"role": end.role, "until": end.until, "warn_at": end.warn_at}
            user = {"_id": self.id, "roles.$id": end.role, "role_ends": {"$elemMatch": match}}
            warned = {"$set": {"role_ends.$.warn_at": None}}
            role = await Role.get(end.role, session=tx)
            if not await self.change(user, warned, tx=tx) or role is None:
                return False
            words = {"role": role.name, "until": end.until}
            await inform(ROLE_ENDS_SOON, self, by=SYSTEM, tx=tx, **words)
            return True

        return await authorized_transaction(SYSTEM, work)

    async def change_authority(
        self,
        condition: Mapping[str, Any],
        change: Mapping[str, Any],
        *,
        by: Actor,
        tx: Tx,
        version: int = 1,
    ) -> bool:
        """Apply the change to the user document if it matches the condition; return whether it did.

        Also raises `authz_version` by `version`, so that the workers load the user's permissions
        again, and sets `authz_by` and `authz_at` to the actor and the time. In the caller's
        transaction. Records no event and ends no session.
        """
        update: dict[str, Any] = {**change, "$inc": {"authz_version": version}}
        changed = {"authz_by": user_ref(by.user_id), "authz_at": clock.now()}
        update["$set"] = {**change.get("$set", {}), **changed}
        return await self.change({"_id": self.id, **condition}, update, tx=tx)


async def _hold_administrators_for(role: Role, tx: Tx) -> tuple[int, int]:
    """Return how many administrators there are (`count_administrators`), and hold their lock, if
    it is the role `admin`; else (0, 0), without a query."""
    if role.name != policy.ADMIN:
        return 0, 0
    await hold_administrators(tx)
    return await count_administrators(tx)
