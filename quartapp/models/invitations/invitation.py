"""Invitations: an account for an address, to be made by whoever reads its mail, with a role.

What an invitation is worth is judged when it is taken up, not when it was written: see ADR 50.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock, policy, validation
from quartapp.activities import (
    INVITATION_ACCEPTED,
    INVITATION_SENT_AGAIN,
    INVITATION_WITHDRAWN,
    USER_INVITED,
    Activity,
)
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.registration import add_user
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.permissions import usable_roles
from quartapp.models.authorization.privileges import (
    INVITATION,
    Holdings,
    MissingPermission,
    holdings_of,
    require_to_give,
)
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import (
    CASELESS,
    DomainError,
    linked_id,
    role_ref,
    user_ref,
)
from quartapp.models.base.tokens import digest_of, new_token
from quartapp.models.base.write_lock import hold_invitations
from quartapp.models.email.outbox import Mail
from quartapp.models.notifications.notice import notify
from quartapp.models.roles.role import Role

LASTS = timedelta(days=7)
KEPT = timedelta(days=90)
PAGE = 50
SHOWN = ["by", "role", "account", "withdrawn_by"]


class Fate(StrEnum):
    """What has become of an invitation."""

    OPEN = "open"
    ACCEPTED = "accepted"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    VOID = "void"


class InvitationGone(DomainError):
    """It cannot be taken up; `fate` says why, None for a link that none leads to."""

    def __init__(self, fate: Fate | None = None) -> None:
        self.fate = fate
        super().__init__("This invitation is no longer valid.")


class InvitedAlready(DomainError):
    """An invitation to the address is open."""

    def __init__(self) -> None:
        super().__init__(
            "This address was already invited. Send that email again, or withdraw it first."
        )


class EnoughInvitations(DomainError):
    """The inviter has so many open ones that there is no room for another."""

    def __init__(self, at_most: int) -> None:
        super().__init__(
            f"You have {at_most} pending invitations, which is the maximum. "
            "Withdraw one, or wait until one is accepted."
        )


class Invitation(Record):
    """An invitation. `digest` is that of the token in the newest letter, once that was sent.

    `by` answers for it: who wrote it, or who sent it again; nobody for the command line.
    """

    email: str
    role: Link[Role] | None = None
    by: Link[User] | None = None
    created_at: datetime
    asked_at: datetime
    expires_at: datetime
    digest: str | None = Field(default=None, repr=False)
    accepted_at: datetime | None = None
    account: Link[User] | None = None
    withdrawn_at: datetime | None = None
    withdrawn_by: Link[User] | None = None

    class Settings:
        name = "invitations"
        indexes = [
            IndexModel(
                [("digest", 1)],
                name="by_token",
                unique=True,
                partialFilterExpression={"digest": {"$type": "string"}},
            ),
            IndexModel([("email", 1)], name="of_address", collation=CASELESS),
            IndexModel([("by.$id", 1), ("expires_at", 1)], name="of_inviter"),
            IndexModel([("account.$id", 1)], name="of_account", sparse=True),
            IndexModel(
                [("expires_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            ),
        ]

    # ---- finding

    @classmethod
    async def one(cls, **match: Any) -> Self | None:
        """With its people and its role."""
        found = await cls.listed(match, sort="_id", limit=1, fetch=SHOWN)
        return found[0] if found else None

    @classmethod
    async def by_token(cls, token: str) -> Self | None:
        """Whatever has become of it. Does not use it up."""
        return await cls.one(**_has(token))

    @classmethod
    async def page(
        cls, *, before: PydanticObjectId | None = None, limit: int = PAGE
    ) -> list[tuple[Self, Fate]]:
        """The newest first, with their people and roles, and what has become of each."""
        match = {"_id": {"$lt": before}} if before else {}
        rows = await cls.listed(match, sort="-_id", limit=limit, fetch=SHOWN)
        inviters = await _inviters({linked_id(row.by) for row in rows if row.by})
        return [(row, row._fate(inviters, row.allows)) for row in rows]

    @property
    def inviter(self) -> str | None:
        """The name of whoever answers for it, where it is known."""
        return self.by.username if isinstance(self.by, User) else None

    @property
    def gives(self) -> str | None:
        """The name of its role; None for one that is gone."""
        return self.role.name if isinstance(self.role, Role) else None

    @property
    def allows(self) -> list[str]:
        """The permissions of its role, where that was fetched; none for a role that is gone."""
        return self.role.permissions if isinstance(self.role, Role) else []

    async def fate(self, *, tx: Tx | None = None) -> Fate:
        """What has become of it, and of the authority behind it, by now."""
        inviters = await _inviters({linked_id(self.by)} if self.by else set(), tx=tx)
        return self._fate(inviters, await self._allowed(tx))

    async def _allowed(self, tx: Tx | None) -> list[str]:
        role = await Role.get(linked_id(self.role), session=tx) if self.role else None
        return role.permissions if role else []

    def _fate(self, inviters: Mapping[PydanticObjectId, Holdings], given: Collection[str]) -> Fate:
        if self.accepted_at is not None:
            return Fate.ACCEPTED
        if self.withdrawn_at is not None:
            return Fate.WITHDRAWN
        if self.expires_at <= clock.now():
            return Fate.EXPIRED
        if self.by is None:
            return Fate.OPEN
        held = inviters.get(linked_id(self.by))
        return Fate.VOID if held is None or held.lacks(given) else Fate.OPEN

    # ---- writing and taking back

    @classmethod
    async def write(
        cls, email: str, role: Role | None, *, by: Actor, at_most: int | None = None
    ) -> "Invitation":
        """Invites whoever reads the mail of the address. Raises Taken, InvitedAlready,
        EnoughInvitations, and MissingPermission for a role that allows more than the actor holds.
        """
        if role and role.name == policy.MEMBER:
            # Which everybody is.
            role = None
        now = clock.now()
        invitation = cls(
            email=email,
            role=role_ref(role and role.id),
            by=user_ref(by.user_id),
            created_at=now,
            asked_at=now,
            expires_at=now + LASTS,
        )

        async def work(tx: Tx) -> None:
            await require_to_give(by, [role.id] if role else [], tx)
            await invitation._require_room(by, at_most, tx)
            await invitation.insert(session=tx)
            await invitation._send(tx)
            await invitation._record(USER_INVITED, by, tx, role=role and role.name)

        await authorized_transaction(by, work)
        return invitation

    async def send_again(self, *, by: Actor, at_most: int | None = None) -> bool:
        """Another letter, which voids those before it, and another week. Whoever sends it answers
        for it from now on, and has to hold what its role allows. Raises Taken, InvitedAlready,
        EnoughInvitations and MissingPermission.

        Also for one that has expired; False if it was taken up or withdrawn.
        """

        async def work(tx: Tx) -> bool:
            await require_to_give(by, [linked_id(self.role)] if self.role else [], tx)
            await self._require_room(by, at_most, tx)
            now = clock.now()
            changes = {
                "asked_at": now,
                "expires_at": now + LASTS,
                "digest": None,
                "by": user_ref(by.user_id),
            }
            match = {"_id": self.id, "accepted_at": None, "withdrawn_at": None}
            if not await Invitation.change(match, {"$set": changes}, tx=tx):
                return False
            await self._send(tx)
            await self._record(INVITATION_SENT_AGAIN, by, tx)
            return True

        return await authorized_transaction(by, work)

    async def withdraw(self, *, by: Actor) -> bool:
        """Makes its link dead; False if it was taken up or withdrawn already.

        Raises MissingPermission if its role allows a permission that the actor does not hold.
        """

        async def work(tx: Tx) -> bool:
            held = await holdings_of(by, tx)
            if missing := held.lacks(await self._allowed(tx)):
                raise MissingPermission(INVITATION, missing, self.email)
            match = {"_id": self.id, "accepted_at": None, "withdrawn_at": None}
            now = {"withdrawn_at": clock.now(), "withdrawn_by": user_ref(by.user_id)}
            changed = await Invitation.change(match, {"$set": now}, tx=tx)
            if changed:
                await self._record(INVITATION_WITHDRAWN, by, tx)
            return changed

        return await authorized_transaction(by, work)

    async def _require_room(self, by: Actor, at_most: int | None, tx: Tx) -> None:
        """For one more that is open, to this address and by this inviter."""
        await hold_invitations(tx)
        # An account that only claims the address makes room when the invitation is accepted.
        if await User.by_email(self.email, tx=tx):
            raise Taken("email")
        same = {
            "email": {"$in": validation.spellings(self.email)},
            "_id": {"$ne": self.id},
            **_open(),
        }
        # The collation compares too much as equal, such as ß and ss.
        rows = await Invitation.find(same, session=tx, collation=CASELESS).to_list()
        mailbox = validation.canonical_email(self.email)
        for row in (row for row in rows if validation.canonical_email(row.email) == mailbox):
            # One whose inviter may not invite any more leads nowhere, and is in nobody's way.
            if await row.fate(tx=tx) is Fate.OPEN:
                raise InvitedAlready
        if by.user_id is None or at_most is None:
            return
        others = {"by.$id": by.user_id, "_id": {"$ne": self.id}, **_open()}
        if await Invitation.find(others, session=tx).count() >= at_most:
            raise EnoughInvitations(at_most)

    async def _send(self, tx: Tx) -> None:
        await Mail.queue(USER_INVITED, self.email, tx=tx, invitation=str(self.id))

    async def _record(self, activity: Activity, by: Actor, tx: Tx, **details: Any) -> None:
        await Event.record(activity, by=by, tx=tx, email=self.email, **details)

    # ---- taking up

    @classmethod
    async def take_up(cls, token: str, username: str, password_hash: str, *, by: Actor) -> User:
        """Makes the account that the link is for. Raises InvitationGone, and Taken: then it is as
        good as before.

        The inviter's authority counts as of the commit, and so does what the role allows: whatever
        takes it away writes their document, as the notice to them does here, so the two exclude
        each other. An edit of the role excludes this in the same way.
        """

        async def work(tx: Tx) -> User:
            found = await cls.find_one(_has(token), session=tx)
            fate = await found.fate(tx=tx) if found else None
            if found is None or fate is not Fate.OPEN:
                raise InvitationGone(fate)
            roles = await found._roles(tx)
            user = await add_user(
                *(username, found.email, password_hash), roles=roles, by=by, tx=tx, verified=True
            )
            match = {"_id": found.id, "digest": found.digest, "accepted_at": None}
            taken = {"accepted_at": clock.now(), "account": user_ref(user.id)}
            if not await cls.change(match, {"$set": taken}, tx=tx):
                raise InvitationGone(Fate.ACCEPTED)
            who = by.known_as(user.id, username)
            names = sorted(role.name for role in roles)
            await record(INVITATION_ACCEPTED, user, by=who, tx=tx, roles=names)
            if found.by:
                inviter, words = linked_id(found.by), {"by": username, "email": found.email}
                await notify(inviter, INVITATION_ACCEPTED, tx, **words)
            return user

        return await transaction(work)

    async def _roles(self, tx: Tx) -> list[Role]:
        """What the account is made with. A role that is gone gives nothing."""
        roles = [member] if (member := await Role.named(policy.MEMBER)) else []
        role = await Role.get(linked_id(self.role), session=tx) if self.role else None
        # Written, so that this and a deletion at once exclude each other.
        if role and role.name != policy.MEMBER and await role.count_grant(tx):
            roles.append(role)
        return roles


async def issue(mail: Mail) -> dict[str, str] | None:
    """For sending the letter: its words, with a fresh token in the place of any before it.

    None when nobody needs it any more, as after a newer one was asked for.
    """
    found = await Invitation.one(_id=PydanticObjectId(mail.data["invitation"]))
    if found is None or found.asked_at > mail.created_at or await found.fate() is not Fate.OPEN:
        return None
    token, digest = new_token()
    match = {"_id": found.id, "asked_at": found.asked_at, **_open()}
    now = {"digest": digest, "expires_at": clock.now() + LASTS}
    if not await Invitation.change(match, {"$set": now}):
        return None
    roles = " and ".join(filter(None, (policy.MEMBER, found.gives)))
    return {"token": token, "inviter": found.inviter or "An operator", "roles": roles}


def _has(token: str) -> dict[str, Any]:
    """The filter for the invitation of this token. It names the type, or the partial index would
    not be used."""
    return {"digest": {"$eq": digest_of(token), "$type": "string"}}


def _open() -> dict[str, Any]:
    return {"accepted_at": None, "withdrawn_at": None, "expires_at": {"$gt": clock.now()}}


async def _inviters(
    ids: Collection[PydanticObjectId], *, tx: Tx | None = None
) -> dict[PydanticObjectId, Holdings]:
    """What those of the users hold who may invite now: their account is open, and they hold
    users.manage.

    A role that requires a second factor counts for users who have one. Whether it was shown, only a
    session says, and there is none here.
    """
    users = await User.find({"_id": {"$in": list(ids)}}, session=tx).to_list() if ids else []
    linked = {linked_id(link) for user in users for link in user.roles}
    rows = await Role.find({"_id": {"$in": list(linked)}}, session=tx).to_list() if linked else []
    found: dict[PydanticObjectId, Holdings] = {}
    for user in users:
        roles = [role.__dict__ for role in rows if user.holds(role)]
        shown = bool(user.factors)
        held = Holdings.of(usable_roles(roles, shown=shown))
        if user.is_active and not held.lacks([policy.Permission.USERS_MANAGE]):
            found[user.id] = held
    return found
