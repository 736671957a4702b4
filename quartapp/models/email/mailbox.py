"""The mail budget: how many emails one mailbox is sent within the period of LIMIT_MAIL.

Every email counts. Emails belong to lanes: one lane each for password resets, verifications,
invitations and changes of address, and one for all notifications. Each has its share of the budget,
so that emails that strangers can cause do not use up those that users need to sign in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from limits import RateLimitItem
from pymongo import IndexModel

from quartapp import clock
from quartapp.activities import Email, Lane
from quartapp.db.mongo import Tx
from quartapp.models.base.record import Record
from quartapp.settings import MAIL_SHARES
from quartapp.validation import mailbox_of

# How many shares of the budget each lane has.
ROOM: Mapping[Lane, int] = {
    "reset": 1,
    "verification": 1,
    "invitation": 1,
    "address": 1,
    "notifications": 2,
}


class Mailbox(Record):
    """Emails queued for one mailbox since its period began, by lane and within it by kind.

    The id is a digest of the address without its `+tag`.
    """

    id: str  # type: ignore[assignment]
    sent: dict[str, dict[str, int]]
    until: datetime

    class Settings:
        name = "mailboxes"
        indexes = [IndexModel([("until", 1)], name="kept", expireAfterSeconds=60)]

    @classmethod
    async def count_email(cls, to: str, email: Email, *, limit: RateLimitItem, tx: Tx) -> bool:
        """Count an email to this address; return False, without a write, if there is no room for
        it.

        There is none if its lane has used up its share of the `limit`, or its kind has used up one
        share. The first email starts a period, after whose end the counts start again. Two
        transactions that count one mailbox at once conflict, so one of them runs again.
        """
        # Dots separate fields, so they cannot be in the name of one.
        kind, lane = email.kind.replace(".", "_"), email.lane
        now, mailbox = clock.now(), hashlib.sha256(mailbox_of(to).encode()).hexdigest()
        found = await cls.find_one({"_id": mailbox, "until": {"$gt": now}}, session=tx)
        sent = found.sent if found else {}
        if not _has_room(sent.get(lane, {}), kind, lane, limit.amount // MAIL_SHARES):
            return False
        counted = {**sent, lane: {**sent.get(lane, {}), kind: sent.get(lane, {}).get(kind, 0) + 1}}
        until = found.until if found else now + timedelta(seconds=limit.get_expiry())
        await cls.get_motor_collection().replace_one(
            {"_id": mailbox}, {"sent": counted, "until": until}, upsert=True, session=tx
        )
        return True


def _has_room(sent: Mapping[str, int], kind: str, lane: Lane, share: int) -> bool:
    """Return whether the lane, whose counts by kind are `sent`, may have another email of this
    kind.

    A kind has at most one share, so that it alone cannot fill a lane of two shares.
    """
    return sent.get(kind, 0) < share and sum(sent.values()) < share * ROOM[lane]
