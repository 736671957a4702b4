"""The outbox: letters that wait to be sent.

A letter is queued in the transaction of what it tells of. What is kept says which letter, to whom
and about what; never anything that opens an account, for links are made when it is sent.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from beanie import PydanticObjectId
from pymongo import IndexModel, ReturnDocument

from quartapp import clock, metrics
from quartapp.db import mongo
from quartapp.db.mongo import Tx
from quartapp.log import log
from quartapp.models.base.record import Record
from quartapp.models.base.references import UserRef, linked_id, user_ref
from quartapp.models.email.mailbox import NOTIFICATIONS, Mailbox

# Longer than sending may take: until then nobody else tries.
LEASE = timedelta(minutes=2)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=15), timedelta(hours=1)
TRIES = 12
KEPT = timedelta(days=7)


class Letter(StrEnum):
    """Which letter it is."""

    CONFIRM = "address.confirm"
    ADDRESS_TAKEN = "address.taken"
    RESET = "password.reset"
    SIGNED_IN = "session.started"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105
    ADDRESS_CHANGED = "address.changed"
    INVITED = "user.invited"
    CLOSED = "account.closed"
    LEAVING = "account.leaving"
    REMOVED = "account.removed"
    RESTORED = "account.restored"
    DISOWNED = "activity.disowned"
    FACTOR_ADDED = "factor.added"
    FACTOR_REMOVED = "factor.removed"
    PASSKEY_REFUSED = "passkey.refused"
    CODES_REFUSED = "codes.refused"
    CODES_BLOCKED = "codes.blocked"
    FACTORS_RESET = "factors.reset"
    RECOVERY_CODE_USED = "recovery_code.used"
    RECOVERY_CODES_MADE = "recovery_codes.made"


# Shares of the mail budget: see models.email.mailbox. All other kinds are notifications.
LANES = {
    Letter.RESET: "reset",
    Letter.CONFIRM: "verification",
    Letter.INVITED: "invitation",
    Letter.ADDRESS_CHANGED: "address",
}


class Mail(Record):
    """One letter. Deleted when it is sent; one that was given up stays a week to be looked at.

    `due_at` is also the lease: whoever claims the letter puts it off for as long as sending may
    take, so that it is due again if that worker dies. `tries` tells a claim from a later one.
    """

    letter: Letter
    to: str
    user: UserRef | None = None
    data: dict[str, str] = {}
    created_at: datetime
    due_at: datetime
    tries: int = 0
    trouble: str | None = None
    gave_up_at: datetime | None = None

    class Settings:
        name = "outbox"
        indexes = [
            IndexModel([("gave_up_at", 1), ("due_at", 1)], name="due"),
            IndexModel(
                [("gave_up_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            ),
        ]

    @classmethod
    async def queue(
        cls,
        letter: Letter,
        to: str,
        *,
        tx: Tx,
        user: PydanticObjectId | None = None,
        **data: str | None,
    ) -> None:
        """Queue an email, in the transaction of what it tells of.

        Past the mail budget of the mailbox (LIMIT_MAIL) nothing is queued, which the log says:
        nobody's action fails because a mailbox has had enough.
        """
        limit = mongo.settings().limit_mail
        lane = LANES.get(letter, NOTIFICATIONS)
        if not await Mailbox.take(to, letter.name, lane, limit=limit, tx=tx):
            log.warning("mail_suppressed", letter=letter.value, user=str(user), why="budget")
            metrics.MAILS.labels("suppressed").inc()
            return
        now = clock.now()
        known = {name: value for name, value in data.items() if value is not None}
        await cls(
            letter=letter,
            to=to,
            user=user_ref(user),
            data=known,
            created_at=now,
            due_at=now,
        ).insert(session=tx)

    @classmethod
    async def claim(cls) -> Mail | None:
        """The letter that has been due for longest, for the caller alone while the lease lasts."""
        now = clock.now()
        found = await cls.get_motor_collection().find_one_and_update(
            {"gave_up_at": None, "due_at": {"$lte": now}},
            {"$set": {"due_at": now + LEASE}, "$inc": {"tries": 1}},
            sort=[("due_at", 1), ("_id", 1)],
            return_document=ReturnDocument.AFTER,
        )
        return cls.model_validate(found) if found else None

    @property
    def user_id(self) -> PydanticObjectId | None:
        return linked_id(self.user) if self.user else None

    async def done(self) -> None:
        """It was sent, or nobody needs it any more."""
        await Mail.get_motor_collection().delete_one(self._mine())

    async def failed(self, trouble: str, *, for_good: bool = False) -> bool:
        """Puts it off, each time for longer; or gives it up, after the last try or `for_good`.

        Whether it was given up.
        """
        now = clock.now()
        change: dict[str, Any] = {"trouble": trouble[:300]}
        giving_up = for_good or self.tries >= TRIES
        if giving_up:
            change["gave_up_at"] = now
        else:
            change["due_at"] = now + min(FIRST_PAUSE * 2 ** (self.tries - 1), LONGEST_PAUSE)
        await Mail.change(self._mine(), {"$set": change})
        return giving_up

    def _mine(self) -> dict[str, Any]:
        """While the claim of this document is the last one."""
        return {"_id": self.id, "tries": self.tries}
