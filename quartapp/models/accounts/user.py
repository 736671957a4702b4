"""Users, with the operations that change their authority, account, password and notifications.

Most operations are one authorized transaction that contains the change, the end of sessions, the
audit event and the notification. They return the audit event, or None, without any effect, if there
was nothing to change. The object keeps its old values. Sockets learn of the change from the change
stream, after the commit.

No operation waits for the workers: the caller does, with `wait_until_enforced(event)` if the event
has a barrier mark, else with `wait_until_enforced()`.

An authorized transaction raises SessionOver if the actor's session has ended, and RightsChanged if
it has lost a permission. If it manages a user, it raises MissingPermission if that is another user
who holds a permission that the actor lacks. Every transaction raises OutcomeUnknown if the database
does not confirm in time that it was committed.
"""

from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.activities import (
    ACCOUNT_DEACTIVATED,
    ACCOUNT_DISABLED,
    ACCOUNT_ENABLED,
    ACCOUNT_RESTORED,
    CODES_BLOCKED,
    CODES_REFUSED,
    DELETION_SCHEDULED,
    PASSWORD_CHANGED,
    SESSIONS_ENDED,
    Activity,
)
from quartapp.db.mongo import Tx, transaction
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts import status
from quartapp.models.accounts.account import (
    ForgottenBrowsers,
    Taken,
    address_fields,
)
from quartapp.models.accounts.administrators import count_administrators, require_an_administrator
from quartapp.models.accounts.credential import KeptCredential, fingerprint
from quartapp.models.accounts.role_grants import RoleHolder
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import inform, queue_email, record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import BATCH
from quartapp.models.base.references import DomainError, user_ref
from quartapp.models.base.tokens import new_token
from quartapp.models.base.write_lock import hold_administrators
from quartapp.models.notifications.notice import Notice, notify
from quartapp.models.sessions.reason import EndDetail, Reason
from quartapp.models.sessions.session import (
    Session,
    count_active,
    end_and_record,
    mark_ended,
)


class PasswordMoved(DomainError):
    """The stored password hash is not the one that the operation started from."""

    def __init__(self) -> None:
        super().__init__(_("The password was changed in the meantime. Start again."))


# How many notifications can be marked as read one by one, before older ones.
MAX_READ_EARLY = 100


class User(RoleHolder):
    """A user. `Account` has the fields and how to find one, `RoleHolder` grants and revokes roles;
    this class adds the other operations."""

    async def verify(self, email: str, *, tx: Tx) -> bool:
        """Mark the address as verified, from which on the account can be used; return whether that
        changed anything.

        An account that claimed the address now holds it, and is no longer due for deletion. Returns
        False if the account was verified or deleted meanwhile, or has another address; for a claim
        also if the account is due for deletion. Raises Taken if another account holds it. Records
        no event.
        """
        match, change = self.proof(email)
        try:
            return await User.change(match, {"$set": change}, tx=tx)
        except DuplicateKeyError:
            raise Taken("email") from None

    def proof(self, email: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the filter and the changes of an update that marks this address as verified.

        The filter matches only while it is unverified. An account that only claims the address also
        gets it, and is no longer due for deletion; too late if that has begun. One that was
        restored has no time of deletion.
        """
        now = clock.now()
        change = {"email_verified_at": now, "must_verify": False}
        match = {"_id": self.id, "email_verified_at": None}
        if self.claimed_email is None:
            return {**match, "email": email}, change
        in_time = {"deletes_at": {"$not": {"$lte": now}}, "erasing_until": None}
        claim_is_over = {"claimed_email": None, "canonical_claim": None, "deletes_at": None}
        held = {**address_fields(email), **claim_is_over}
        return {**match, **in_time, "claimed_email": email}, {**change, **held}

    # ---- authority

    async def disable(self, *, by: Actor) -> Event | None:
        """Disable the account, end all of its sessions, and return the event ACCOUNT_DISABLED.

        In an authorized transaction that manages the user, with a barrier mark. Removes an expiry,
        makes all browsers unknown and notifies the user; `event.ended_sessions` says how many
        sessions were active. Returns None if it is disabled already. Raises LastAdministrator and
        MissingPermission.
        """

        async def work(tx: Tx) -> Event | None:
            await hold_administrators(tx)
            before = await count_administrators(tx)
            closed = {"disabled_at": clock.now(), "closes_at": None}
            changed = await self.change_authority(
                {"disabled_at": None}, {"$set": closed}, by=by, tx=tx
            )
            if not changed:
                return None
            await require_an_administrator(before, tx)
            await self.forget_browsers(tx=tx)
            event = Event.of(ACCOUNT_DISABLED, by=by, subject=self.id)
            mine = {"user.$id": self.id}
            event.note_ended_sessions(await count_active(mine, tx))
            await mark_ended(mine, Reason.ACCOUNT_DISABLED, by=by, event=event, tx=tx)
            return await record(ACCOUNT_DISABLED, self, by=by, tx=tx, event=event)

        return await authorized_transaction(by, work, managing=self.id, ends_sessions=True)

    async def enable(self, *, by: Actor) -> Event | None:
        """Enable a disabled or expired account, remove its expiry, and return the event
        ACCOUNT_ENABLED.

        In an authorized transaction that manages the user, which also notifies the user. Returns
        None if it is neither. A deactivated account stays deactivated. Raises MissingPermission.
        """

        async def work(tx: Tx) -> Event | None:
            over = status.expired_filter(clock.now())
            changed = await self.change_authority(
                {"$or": [{"disabled_at": {"$ne": None}}, over]},
                {"$set": {"disabled_at": None, "closes_at": None}},
                by=by,
                tx=tx,
            )
            if not changed:
                return None
            return await record(ACCOUNT_ENABLED, self, by=by, tx=tx)

        return await authorized_transaction(by, work, managing=self.id)

    async def deactivate(
        self, *, by: Actor, deletes_at: datetime | None = None, with_posts: bool = False
    ) -> Event | None:
        """Deactivate the account or, with `deletes_at`, schedule its deletion at that time; end all
        of its sessions. Return the event ACCOUNT_DEACTIVATED or DELETION_SCHEDULED.

        In an authorized transaction that manages the user, with a barrier mark. The user is
        emailed, and notified if somebody else did it. `with_posts` says that posts and comments
        will be deleted too; it is ignored without `deletes_at`. The user can restore the account if
        they deactivated it themselves (`restore`). `event.ended_sessions` is not set.

        If an administrator schedules a deletion that the user has scheduled already, the earlier
        time counts, and the user can no longer cancel it. Returns None, without a change, if the
        account is deactivated already or, with `deletes_at`, its deletion is scheduled for the same
        or an earlier time. Raises LastAdministrator and MissingPermission.
        """
        own = by.user_id == self.id
        if deletes_at is None:
            condition: dict[str, Any] = {"closed_at": None}
        else:
            later = [{"deletes_at": None}, {"deletes_at": {"$gt": deletes_at}}]
            condition = {"$or": later if own else [*later, {"closed_by.$id": self.id}]}

        async def work(tx: Tx) -> Event | None:
            await hold_administrators(tx)
            before = await count_administrators(tx)
            there = await User.get(self.id, session=tx)
            wished = there.deletes_at if there else None
            until = min(wished or deletes_at, deletes_at) if deletes_at else None
            closing = {"closed_at": clock.now(), "closed_by": user_ref(by.user_id)}
            leaving = {"deletes_at": until, "deletes_posts": with_posts} if until else {}
            change = {"$set": closing | leaving}
            if not await self.change_authority(condition, change, by=by, tx=tx):
                return None
            await require_an_administrator(before, tx)
            activity = DELETION_SCHEDULED if until else ACCOUNT_DEACTIVATED
            event = Event.of(activity, by=by, subject=self.id)
            if until:
                event.details["until"] = until
                event.details["posts"] = "removed" if with_posts else "kept"
            mine, reason = {"user.$id": self.id}, Reason.ACCOUNT_DISABLED
            because = EndDetail.DELETED if until else None
            await mark_ended(mine, reason, by=by, event=event, because=because, tx=tx)
            words = {"until": until, "ip": by.ip if own else None}
            return await record(activity, self, by=by, tx=tx, event=event, words=words)

        return await authorized_transaction(by, work, managing=self.id, ends_sessions=True)

    async def restore(self, *, by: Actor) -> Event | None:
        """Make a deactivated account active again, cancel its deletion, and return the event
        ACCOUNT_RESTORED.

        In an authorized transaction that manages the user. The user is emailed, and notified if
        somebody else did it. Returns None if it is not deactivated, or if its deletion is due. An
        account that is also disabled stays disabled. Raises MissingPermission.
        """

        async def work(tx: Tx) -> Event | None:
            return await self.restore_in_transaction(by=by, tx=tx)

        return await authorized_transaction(by, work, managing=self.id)

    async def restore_in_transaction(self, *, by: Actor, tx: Tx) -> Event | None:
        """The writes of `restore`, for the caller's transaction: makes the account active, cancels
        its deletion, informs the user, and returns the event ACCOUNT_RESTORED. None, without a
        write, if it is not deactivated, its deletion is due, or it is being erased."""
        nothing = {"closed_at": None, "closed_by": None, "deletes_at": None, "deletes_posts": False}
        in_time = [{"deletes_at": None}, {"deletes_at": {"$gt": clock.now()}}]
        condition = {"closed_at": {"$ne": None}, "erasing_until": None, "$or": in_time}
        if not await self.change_authority(condition, {"$set": nothing}, by=by, tx=tx):
            return None
        return await record(ACCOUNT_RESTORED, self, by=by, tx=tx)

    async def end_sessions(
        self, reason: Reason, *, by: Actor, keep: PydanticObjectId | None = None
    ) -> Event | None:
        """End all sessions of the user but `keep`; return the event SESSIONS_ENDED, or None if none
        was active.

        In an authorized transaction that manages the user, with a barrier mark if there is an
        event. Makes all browsers unknown, but that of the session to keep, also if no session was
        active. Notifies the user if the reason is ENDED_BY_ADMIN and a session was active. The
        event has the number of active sessions in `details["count"]`. Raises MissingPermission.
        """

        async def work(tx: Tx) -> Event | None:
            match: dict[str, Any] = {"user.$id": self.id}
            if keep:
                match["_id"] = {"$ne": keep}
            await self.forget_browsers(tx=tx, keep=keep)
            event = await end_and_record(
                match, reason, SESSIONS_ENDED, by=by, subject=self.id, tx=tx
            )
            if event and reason is Reason.ENDED_BY_ADMIN:
                await self.notify(SESSIONS_ENDED, tx, by=by.username)
            return event

        return await authorized_transaction(by, work, managing=self.id, ends_sessions=True)

    @classmethod
    async def raise_version(cls, user_id: PydanticObjectId, version: int) -> None:
        """Increment `authz_version` if it still is `version`, clear `authz_by` and set `authz_at`.

        For a change of permissions that another program wrote without doing so. Many workers see
        such a change; the condition lets only one of them increment it.
        """
        await cls.change(
            {"_id": user_id, "authz_version": version},
            {"$inc": {"authz_version": 1}, "$set": {"authz_by": None, "authz_at": clock.now()}},
        )

    # ---- passwords

    async def change_password(
        self, password_hash: str, *, by: Actor, keep: PydanticObjectId | None = None
    ) -> str | None:
        """Store the new password hash and end all sessions but `keep`; return the new token of that
        session.

        In an authorized transaction that manages the user. The session to keep counts as just
        re-authenticated, and its old token no longer works. Cancels a pending change of address,
        notifies and emails the user, and records the event PASSWORD_CHANGED. Inserts no barrier
        mark. Returns None, after the same changes, if there is no session to keep or it has ended.
        Only the browser of that session stays known. Raises PasswordMoved, without a change, if the
        stored hash is not the one of this object any more, and MissingPermission.
        """
        token, digest = new_token()

        async def work(tx: Tx) -> bool:
            now = clock.now()
            changed = await User.change(
                {"_id": self.id, "password_hash": self.password_hash},
                {
                    "$set": {
                        "password_hash": password_hash,
                        "password_changed_at": now,
                        # Somebody who knew the old password may have requested it.
                        "pending_email": None,
                    }
                },
                tx=tx,
            )
            if not changed:
                raise PasswordMoved
            event = Event.of(PASSWORD_CHANGED, by=by, subject=self.id)
            others = {"user.$id": self.id, "_id": {"$ne": keep}}
            await mark_ended(others, Reason.PASSWORD_CHANGED, by=by, event=event, tx=tx)
            await record(PASSWORD_CHANGED, self, by=by, tx=tx, event=event)
            return await Session.change(
                {"_id": keep, "user.$id": self.id, "ended_at": None},
                {
                    "$set": {
                        "digest": digest,
                        "credential": fingerprint(password_hash),
                        "confirmed_at": now,
                    }
                },
                tx=tx,
            )

        return token if await authorized_transaction(by, work, managing=self.id) else None

    async def upgrade_hash(self, password_hash: str) -> None:
        """Store a new hash of the same password, so that sessions, links and known browsers stay
        valid. Updates this object too.

        Changes neither if the stored hash is not the one of this object any more. Not in a
        transaction, and without an event.
        """
        kept = KeptCredential(hash=fingerprint(password_hash), credential=self.credential)
        changed = await User.change(
            {"_id": self.id, "password_hash": self.password_hash},
            {"$set": {"password_hash": password_hash, "kept_credential": kept.model_dump()}},
        )
        if changed:
            self.password_hash, self.kept_credential = password_hash, kept

    async def forget_browsers(self, *, tx: Tx, keep: PydanticObjectId | None = None) -> None:
        """Make every browser unknown but that of the session `keep`, in the caller's transaction.

        The next sign-in from an unknown browser is reported by email, and its failed attempts are
        not counted separately (`is_known_browser`).
        """
        forgotten = ForgottenBrowsers(at=clock.now(), keep=keep).model_dump()
        await User.change({"_id": self.id}, {"$set": {"browsers_forgotten": forgotten}}, tx=tx)

    # ---- notifications and emails

    async def notify(self, activity: Activity, tx: Tx, /, **data: Any) -> None:
        """Store the activity's notification for the user, with `data` for its text, in the caller's
        transaction.
        """
        await notify(self.id, activity, tx, **data)

    async def queue_email(self, activity: Activity, tx: Tx, /, **data: str | None) -> None:
        """Queue the activity's email to the user, with `data` for its text, in the caller's
        transaction.

        Queues nothing, but logs it, for an unverified address or past the mail budget of the
        mailbox.
        """
        await queue_email(self, activity, tx, **data)

    async def warn_of_wrong_codes(self, *, ip: str | None, blocked: bool = False) -> None:
        """Notify and email the user, in one transaction, that somebody with the password enters
        wrong codes. The email goes only to a verified address.

        With `blocked` the texts say that codes no longer sign in, and the event CODES_BLOCKED is
        recorded; without it, there is no event. Blocks nothing, and each call informs the user
        again.
        """
        by = Actor(ip=ip)

        async def work(tx: Tx) -> None:
            if blocked:
                await record(CODES_BLOCKED, self, by=by, tx=tx)
            else:
                await inform(CODES_REFUSED, self, by=by, tx=tx)

        await transaction(work)

    async def read_notices(self) -> None:
        """Mark all notifications up to `notice_seq` of this object as read, first each notification
        in batches, then the user, without a transaction. Newer ones stay unread."""
        now = clock.now()
        for first in range(self.notices_read, self.notice_seq, BATCH):
            these = {"$gt": first, "$lte": min(first + BATCH, self.notice_seq)}
            unread = {"user.$id": self.id, "seq": these, "read_at": None}
            await Notice.change_all(unread, {"$set": {"read_at": now}})
        await User.change(
            {"_id": self.id, "notices_read": {"$lt": self.notice_seq}},
            {
                "$set": {"notices_read": self.notice_seq},
                "$pull": {"notices_read_early": {"$lte": self.notice_seq}},
            },
        )

    @staticmethod
    async def read_notice(user_id: PydanticObjectId, seq: int) -> None:
        """Mark one notification as read, first the notification and then the user.

        Does nothing if the user has no such notification. The user keeps at most MAX_READ_EARLY
        numbers of notifications that were read before older ones; of more, the oldest count as
        unread until all are marked as read.
        """
        match = {"user.$id": user_id, "seq": seq}
        await Notice.change({**match, "read_at": None}, {"$set": {"read_at": clock.now()}})
        if await Notice.find_one(match):
            await User.change(
                {"_id": user_id, "notices_read": {"$lt": seq}, "notices_read_early": {"$ne": seq}},
                {"$push": {"notices_read_early": {"$each": [seq], "$slice": -MAX_READ_EARLY}}},
            )
