"""Invitations: an email with a link, through which its reader creates an account with a role.

Whether the inviter may give the role is checked when the invitation is accepted, not only when it
was sent: see ADR 50.

What happens in an authorized transaction raises SessionOver or RightsChanged if the actor's session
has ended or has lost a permission.
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
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.registration import add_user
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.permissions import usable_roles
from quartapp.models.authorization.privileges import (
    INVITATION,
    Holdings,
    Lacks,
    MissingPermission,
    holdings_of,
    refusals_to_give,
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
from quartapp.models.base.write_lock import hold_invitations, share_roles
from quartapp.models.email.outbox import Mail
from quartapp.models.notifications.notice import notify
from quartapp.models.roles.refusals import RoleGone
from quartapp.models.roles.role import Role
from quartapp.models.statistics import hourly_count
from quartapp.models.statistics.hourly_count import Counted

LASTS = timedelta(days=7)
KEPT = timedelta(days=90)
PAGE = 50
SHOWN = ["by", "role", "account", "withdrawn_by"]


class InvitationState(StrEnum):
    """The state of an invitation. VOID: the inviter may no longer invite, or lacks a permission
    that the role gives.
    """

    OPEN = "open"
    ACCEPTED = "accepted"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    VOID = "void"


class InvitationGone(DomainError):
    """The invitation cannot be accepted. `state` says why; None if no invitation has this token."""

    def __init__(self, state: InvitationState | None = None) -> None:
        self.state = state
        super().__init__(_("This invitation is no longer valid."))


class InvitedAlready(DomainError):
    """Another open invitation has this address."""

    field = "email"

    def __init__(self) -> None:
        super().__init__(
            _("This address was already invited. Send that email again, or withdraw it first.")
        )


class TooManyInvitations(DomainError):
    """The inviter has the maximum number of open invitations."""

    def __init__(self, at_most: int) -> None:
        super().__init__(
            _(
                "You have %(num)s pending invitations, which is the maximum. Withdraw one, or wait "
                "until one is accepted.",
                num=at_most,
            )
        )


class Invitation(Record):
    """An invitation. `digest` is that of the token in the newest email; None until that was sent.

    `by` is the user on whose authority it depends: who created it, or who sent it again last. None
    for the command line. `asked_at` is when its newest email was queued.
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
        """Return the invitation that matches, with its users and its role; None if there is
        none."""
        found = await cls.find_with_links(match, limit=1, fetch=SHOWN)
        return found[0] if found else None

    @classmethod
    async def by_token(cls, token: str) -> Self | None:
        """Return the invitation of this token in any state, with its users and its role, or None.

        Does not use the token up.
        """
        return await cls.one(**_has(token))

    @classmethod
    async def page(
        cls, *, before: PydanticObjectId | None = None, limit: int = PAGE
    ) -> list[tuple[Self, InvitationState]]:
        """Return at most `limit` invitations in any state, newest first, with their users and roles
        fetched, and each one's state. `before` is the id of the last one of the page before."""
        match = {"_id": {"$lt": before}} if before else {}
        rows = await cls.find_with_links(match, sort="-_id", limit=limit, fetch=SHOWN)
        inviters = await _inviters({linked_id(row.by) for row in rows if row.by})
        return [(row, row._state_for(inviters, row.allows)) for row in rows]

    @property
    def inviter(self) -> str | None:
        """The username of the inviter; None for the command line or a deleted user, or if not
        fetched.
        """
        return self.by.username if isinstance(self.by, User) else None

    @property
    def gives(self) -> str | None:
        """The name of its role; None without a role, for a deleted one, or if it was not
        fetched."""
        return self.role.name if isinstance(self.role, Role) else None

    @property
    def allows(self) -> list[str]:
        """The permissions of its role, if that was fetched; empty without a role or for a deleted
        one.
        """
        return self.role.permissions if isinstance(self.role, Role) else []

    async def state(self, *, tx: Tx | None = None) -> InvitationState:
        """Return its state now. Reads the inviter and the role from the database."""
        inviters = await _inviters({linked_id(self.by)} if self.by else set(), tx=tx)
        return self._state_for(inviters, await self._allowed(tx))

    async def _allowed(self, tx: Tx | None) -> list[str]:
        """Return the permissions of its role as the database has them; empty without one."""
        role = await Role.get(linked_id(self.role), session=tx) if self.role else None
        return role.permissions if role else []

    def _state_for(
        self, inviters: Mapping[PydanticObjectId, Holdings], given: Collection[str]
    ) -> InvitationState:
        """Return its state, given what its inviter may give (`_inviters`) and the permissions of
        its role: accepted, withdrawn, expired, void or open, the first that applies. Never void
        without an inviter.
        """
        if self.accepted_at is not None:
            return InvitationState.ACCEPTED
        if self.withdrawn_at is not None:
            return InvitationState.WITHDRAWN
        if self.expires_at <= clock.now():
            return InvitationState.EXPIRED
        if self.by is None:
            return InvitationState.OPEN
        held = inviters.get(linked_id(self.by))
        return InvitationState.VOID if held is None or held.lacks(given) else InvitationState.OPEN

    # ---- creating and withdrawing

    @classmethod
    async def write(
        cls, email: str, role: Role | None, *, by: Actor, at_most: int | None = None
    ) -> "Invitation":
        """Create an invitation to the address and queue its email, in an authorized transaction.

        It lasts a week from when the email is sent. The role `member`, which every account gets, is
        stored as None. Records the event USER_INVITED. The link is created when the email is sent
        (`issue`).

        Past the mail budget of the mailbox, the invitation is stored, but no email is queued
        (`Mail.queue`). Raises Taken if an account has the address, InvitedAlready,
        TooManyInvitations if the actor, who is not the command line, has `at_most` open
        invitations, MissingPermission if the role has a permission that the actor does not hold,
        and RoleGone if it was deleted. Does not check that the actor may invite: the route does.
        """
        if role and role.name == policy.MEMBER:
            # Every account gets this role.
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
            if role and await Role.get(role.id, session=tx) is None:
                raise RoleGone(role.name)
            await invitation._require_room(by, at_most, tx)
            await invitation.insert(session=tx)
            await invitation._send(tx)
            await invitation._record(USER_INVITED, by, tx, role=role and role.name)

        await authorized_transaction(by, work)
        return invitation

    @classmethod
    async def refusals(
        cls, email: str | None, role: Role | None, *, by: Actor, lacks: Lacks, at_most: int | None
    ) -> list[DomainError]:
        """Return the errors with which `write` would refuse this now. An address that is not valid
        is None, and is not checked. `lacks` tells what the actor lacks."""
        given = []
        if role and role.name != policy.MEMBER:
            given = refusals_to_give(role.name, role.permissions, lacks)
        return [*given, *await cls._refusals_for_room(email, by, at_most)]

    async def send_again(self, *, by: Actor, at_most: int | None = None) -> bool:
        """Queue another email and extend the invitation to a week from now, in an authorized
        transaction; return whether it did.

        Older links no longer work, and the actor becomes the inviter. Records the event
        INVITATION_SENT_AGAIN. An expired invitation becomes open again. Returns False, without any
        effect, if it was accepted or withdrawn. Raises Taken, InvitedAlready, TooManyInvitations
        and MissingPermission as `write` does.
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
        """Withdraw the invitation, so that its link no longer works, in an authorized transaction.

        Records the event INVITATION_WITHDRAWN; sends no email. Returns False, without any effect,
        if it was accepted or withdrawn already. Raises MissingPermission if its role has a
        permission that the actor does not hold.
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
        """Check that there may be one more open invitation to this address and from this inviter.

        Holds the lock of invitations until the commit. Raises the first of the errors of
        `_refusals_for_room`.
        """
        await hold_invitations(tx)
        for refusal in await self._refusals_for_room(self.email, by, at_most, but=self.id, tx=tx):
            raise refusal

    @classmethod
    async def _refusals_for_room(
        cls,
        email: str | None,
        by: Actor,
        at_most: int | None,
        *,
        but: PydanticObjectId | None = None,
        tx: Tx | None = None,
    ) -> list[DomainError]:
        """Return why there may be no further open invitation, beside that with the id `but`.

        Taken if an account has the address, else InvitedAlready if an open invitation has it; and
        TooManyInvitations if the actor has `at_most`. Invitations of an inviter who may no longer
        invite do not count for the address. The command line has no maximum.
        """
        found: list[DomainError] = []
        # An account that only claims the address is deleted when the invitation is accepted.
        if email and await User.by_email(email, tx=tx):
            found.append(Taken("email"))
        elif email and await cls._is_invited(email, but, tx):
            found.append(InvitedAlready())
        if by.user_id is None or at_most is None:
            return found
        others = {"by.$id": by.user_id, "_id": {"$ne": but}, **_open()}
        collection = cls.get_motor_collection()
        if await collection.count_documents(others, limit=max(at_most, 1), session=tx) >= at_most:
            found.append(TooManyInvitations(at_most))
        return found

    @classmethod
    async def _is_invited(cls, email: str, but: PydanticObjectId | None, tx: Tx | None) -> bool:
        """Return whether an open invitation, other than that with the id `but`, has the address."""
        same = {"email": {"$in": validation.spellings(email)}, "_id": {"$ne": but}, **_open()}
        # The collation treats too much as equal, such as ß and ss.
        rows = await cls.find(same, session=tx, collation=CASELESS).to_list()
        mailbox = validation.canonical_email(email)
        for row in (row for row in rows if validation.canonical_email(row.email) == mailbox):
            # If its inviter may no longer invite, it cannot be accepted, so it does not count.
            if await row.state(tx=tx) is InvitationState.OPEN:
                return True
        return False

    async def _send(self, tx: Tx) -> None:
        """Queue the email, in the caller's transaction. It contains only the id: the link is
        created when it is sent (`issue`)."""
        await Mail.queue(USER_INVITED, self.email, tx=tx, invitation=str(self.id))

    async def _record(self, activity: Activity, by: Actor, tx: Tx, **details: Any) -> None:
        """Record an event without a subject, whose details include the address."""
        await Event.record(activity, by=by, tx=tx, email=self.email, **details)

    # ---- accepting

    @classmethod
    async def accept(cls, token: str, username: str, password_hash: str, *, by: Actor) -> User:
        """Create the account of the invitation with this token, and return its user.

        In one transaction, creates the account with the role `member` and that of the invitation
        (`add_user`, with a verified address), marks the invitation as accepted, records the event
        INVITATION_ACCEPTED and notifies the inviter. A role that was deleted is left out. Opens no
        session. Counts the account for the dashboard after the commit.

        `by` is a visitor, with an IP address; the new user is the actor of the events. For a
        signed-in user, `add_user` may raise MissingPermission. No email is queued. Raises
        InvitationGone if the invitation is not open, and Taken if the username or the address is in
        use; the invitation stays open after Taken.

        The authority of the inviter and the permissions of the role are those at the commit:
        whatever changes them writes the document of the inviter or the role, or the lock of the
        roles, and so does this transaction.
        """

        async def work(tx: Tx) -> User:
            found = await cls.find_one(_has(token), session=tx)
            state = await found.state(tx=tx) if found else None
            if found is None or state is not InvitationState.OPEN:
                raise InvitationGone(state)
            roles = await found._roles(tx)
            user = await add_user(
                *(username, found.email, password_hash), roles=roles, by=by, tx=tx, verified=True
            )
            match = {"_id": found.id, "digest": found.digest, "accepted_at": None}
            taken = {"accepted_at": clock.now(), "account": user_ref(user.id)}
            if not await cls.change(match, {"$set": taken}, tx=tx):
                raise InvitationGone(InvitationState.ACCEPTED)
            who = by.known_as(user.id, username)
            names = sorted(role.name for role in roles)
            await record(INVITATION_ACCEPTED, user, by=who, tx=tx, roles=names)
            if found.by:
                inviter, words = linked_id(found.by), {"by": username, "email": found.email}
                await notify(inviter, INVITATION_ACCEPTED, tx, **words)
                await share_roles(tx)
            return user

        user = await transaction(work)
        hourly_count.add(Counted.ACCOUNTS)
        return user

    async def _roles(self, tx: Tx) -> list[Role]:
        """Return the roles for the new account: `member`, and that of the invitation unless it was
        deleted."""
        roles = [member] if (member := await Role.named(policy.MEMBER)) else []
        role = await Role.get(linked_id(self.role), session=tx) if self.role else None
        return [*roles, role] if role and role.name != policy.MEMBER else roles


async def issue(mail: Mail) -> dict[str, str] | None:
    """Create the token for an invitation email that is about to be sent, and return the words of
    its text.

    Stores the digest of the new token in place of the last one, and extends the invitation to a
    week from now. Returns None, and changes nothing, if the invitation is no longer open, or if a
    newer email was queued: then the email is not sent.
    """
    found = await Invitation.one(_id=PydanticObjectId(mail.data["invitation"]))
    if (
        found is None
        or found.asked_at > mail.created_at
        or await found.state() is not InvitationState.OPEN
    ):
        return None
    token, digest = new_token()
    match = {"_id": found.id, "asked_at": found.asked_at, **_open()}
    now = {"digest": digest, "expires_at": clock.now() + LASTS}
    if not await Invitation.change(match, {"$set": now}):
        return None
    both = _("%(first)s and %(second)s", first=policy.MEMBER, second=found.gives)
    roles = both if found.gives else policy.MEMBER
    return {"token": token, "inviter": found.inviter or _("An operator"), "roles": roles}


def _has(token: str) -> dict[str, Any]:
    """Return the filter for the invitation with this token.

    It names the type of `digest`, because MongoDB would not use the partial index without it.
    """
    return {"digest": {"$eq": digest_of(token), "$type": "string"}}


def _open() -> dict[str, Any]:
    """Return the filter for invitations that are neither accepted, nor withdrawn, nor expired."""
    return {"accepted_at": None, "withdrawn_at": None, "expires_at": {"$gt": clock.now()}}


async def _inviters(
    ids: Collection[PydanticObjectId], *, tx: Tx | None = None
) -> dict[PydanticObjectId, Holdings]:
    """Return the permissions of those of the users who may invite: active, with `users.manage`.

    Roles that require a second factor count for users who have one set up. Whether it was shown is
    known only for a session, and there is none here.
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
