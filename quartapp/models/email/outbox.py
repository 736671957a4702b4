"""The outbox: emails that wait to be sent.

An email is queued in the transaction of the change that it is about. A queued email has its kind,
its receiver and some words for its text; never a token, because tokens are created when it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import IndexModel, ReturnDocument

from quartapp import clock, metrics
from quartapp.activities import Activity, Email
from quartapp.db import mongo
from quartapp.db.mongo import Tx
from quartapp.i18n import current_locale
from quartapp.log import log
from quartapp.models.base.counting import CappedCount, count_up_to
from quartapp.models.base.record import Record
from quartapp.models.base.references import CASELESS, UserRef, linked_id, user_ref
from quartapp.models.email.mailbox import Mailbox

# Longer than sending may take: until then no other worker tries.
LEASE = timedelta(minutes=2)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=15), timedelta(hours=1)
TRIES = 12
KEPT = timedelta(days=7)
COUNTED = 1000
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
# Emails that could not be sent and will be tried again.
FAILING = {"trouble": {"$type": "string"}, "gave_up_at": None}


@dataclass(frozen=True, slots=True)
class MailNumbers:
    """How many emails wait to be sent, how many of these have failed before, and how many were
    given up within KEPT."""

    waiting: CappedCount
    failing: CappedCount
    given_up: CappedCount


def as_texts(words: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the words as they are stored in a Mail: times as ISO timestamps, which are written out
    when the email is sent, other values as `str` gives them, and None as it is."""
    return {name: None if word is None else _as_text(word) for name, word in words.items()}


def _as_text(word: Any) -> str:
    return word.isoformat() if isinstance(word, datetime) else str(word)


class Mail(Record):
    """One queued email. Deleted when it is sent; one that was given up is kept for KEPT.

    `kind` is the name of the email (see `quartapp.activities`), also one that this version does
    not know. `due_at` is also the lease: a worker that claims the email puts it off for LEASE, so
    that it is due again if that worker dies. `tries` tells a claim from a later one. `language` is
    that of the request that queued it, for a receiver whose preference is not known.
    """

    # Earlier versions, which may still be running, know this field as `letter`.
    kind: str = Field(alias="letter")
    to: str
    user: UserRef | None = None
    language: str | None = None
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
                [("gave_up_at", 1), ("due_at", 1), ("_id", 1)],
                name="failing",
                partialFilterExpression={"trouble": {"$type": "string"}},
            ),
            # For the export and the erasure of personal data.
            IndexModel([("user.$id", 1)], name="of_user", sparse=True),
            IndexModel([("to", 1)], name="to_address", collation=CASELESS),
            IndexModel(
                [("gave_up_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            ),
        ]

    @classmethod
    async def queue(
        cls,
        what: Activity | Email,
        to: str,
        /,
        *,
        tx: Tx,
        user: PydanticObjectId | None = None,
        **data: str | None,
    ) -> None:
        """Insert an email to be sent by the outbox worker, in the caller's transaction.

        `data` are words for its text, without those that are None. If the mail budget of the
        mailbox (LIMIT_MAIL) is used up, queues nothing, logs `mail_suppressed` and counts it in the
        metrics: the change itself must not fail because of it. Raises TypeError for an activity
        without an email.
        """
        email = what if isinstance(what, Email) else what.own_email
        if not await Mailbox.count_email(to, email, limit=mongo.settings().limit_mail, tx=tx):
            log.warning("mail_suppressed", email=email.kind, user=str(user), why="budget")
            metrics.MAILS.labels("suppressed").inc()
            return
        now = clock.now()
        known = {name: value for name, value in data.items() if value is not None}
        await cls(
            letter=email.kind,
            to=to,
            user=user_ref(user),
            language=current_locale(),
            data=known,
            created_at=now,
            due_at=now,
        ).insert(session=tx)

    @classmethod
    async def claim(cls) -> Mail | None:
        """Claim the email that has been due for longest, and return it; None if none is due.

        Postpones it by LEASE, so that no other worker sends it until then, and increments `tries`.
        """
        now = clock.now()
        found = await cls.get_motor_collection().find_one_and_update(
            {"gave_up_at": None, "due_at": {"$lte": now}},
            {"$set": {"due_at": now + LEASE}, "$inc": {"tries": 1}},
            sort=[("due_at", 1)],
            return_document=ReturnDocument.AFTER,
        )
        return cls.model_validate(found) if found else None

    @classmethod
    async def numbers(cls) -> MailNumbers:
        """Return how many emails are in the outbox, each number counted up to COUNTED."""
        given_up = {"gave_up_at": {"$gt": EARLIEST}}
        outbox = cls.get_collection_name()
        return MailNumbers(
            waiting=await count_up_to(COUNTED, outbox, {"gave_up_at": None}),
            failing=await count_up_to(COUNTED, outbox, FAILING),
            given_up=await count_up_to(COUNTED, outbox, given_up),
        )

    @classmethod
    async def troubled(cls, *, limit: int) -> list[Self]:
        """Return at most `limit` emails that are failing, those to be tried next first, followed by
        at most `limit` that were given up, the latest first."""
        failing = await cls.find_with_links(FAILING, sort="due_at", limit=limit)
        given_up = {"gave_up_at": {"$gt": EARLIEST}}
        return failing + await cls.find_with_links(given_up, sort="-gave_up_at", limit=limit)

    @property
    def user_id(self) -> PydanticObjectId | None:
        return linked_id(self.user) if self.user else None

    async def remove(self) -> None:
        """Delete the email, because it was sent or is not needed any more. Does nothing if another
        worker has claimed it since.
        """
        await Mail.get_motor_collection().delete_one(self._mine())

    async def record_failure(self, trouble: str, *, for_good: bool = False) -> bool:
        """Store the error, cut to 300 characters, and postpone the email or give it up; return
        whether it is to be given up.

        It is given up after TRIES tries or with `for_good`, and then kept for a week. Else it is
        postponed by 15 seconds, doubled with each try, at most an hour. Writes nothing if another
        worker has claimed it since. Logs nothing.
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
        """Return the filter for this email, as long as no other worker has claimed it since."""
        return {"_id": self.id, "tries": self.tries}
