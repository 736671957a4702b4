"""Notifications: stored before they are sent, and numbered without a gap for each user."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Self

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import IndexModel, ReturnDocument

from quartapp import clock
from quartapp.activities import NOTIFICATION_BY_EMAIL, Activity, catalogue
from quartapp.db.mongo import Tx
from quartapp.models.accounts.preferences import stored_groups
from quartapp.models.base.record import Record, documents
from quartapp.models.base.references import USERS, UserRef, user_ref
from quartapp.models.email.outbox import Mail, as_texts
from quartapp.models.factors.factor import described

KEPT = timedelta(days=90)
# The fields of a user that storing a notification reads.
NEEDED = {"notice_seq": 1, "email": 1, "email_verified_at": 1, "preferences": 1}


class Notice(Record):
    """One notification of a user. `seq` rises by one with each notification of that user.

    It is in the order of the commits, because the transaction that stores the notification takes
    the number from the user's document. Object ids, which many workers create, have no such order.

    `kind` is the stored name of a notification (see `quartapp.activities`), also of one that this
    version does not know; `data` has the words for its text.
    """

    user: UserRef
    seq: int
    kind: str
    data: dict[str, Any] = {}
    created_at: datetime = Field(default_factory=clock.now)
    read_at: datetime | None = None

    class Settings:
        name = "notices"
        indexes = [
            IndexModel([("user.$id", 1), ("seq", 1)], name="in_order", unique=True),
            # To erase the name of a deleted account from what others were told.
            IndexModel([("data.by", 1)], name="naming", sparse=True),
            IndexModel([("data.author", 1)], name="quoting", sparse=True),
            IndexModel(
                [("created_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            ),
        ]

    @property
    def text(self) -> str:
        """The sentence that the user reads, in the current language."""
        data = self.data
        if "factor" in data:
            data = {**data, "factor": described(data["factor"])}
        return catalogue.notification_text(self.kind, data)

    @classmethod
    async def after(cls, user_id: PydanticObjectId, seq: int, *, limit: int = 100) -> list[Self]:
        """Return at most `limit` of the user's notifications with a number above `seq`, oldest
        first.
        """
        return await cls.find(
            {"user.$id": user_id, "seq": {"$gt": seq}}, sort="seq", limit=limit
        ).to_list()

    @classmethod
    async def page(
        cls, user_id: PydanticObjectId, *, before: int | None = None, limit: int = 30
    ) -> list[Self]:
        """Return at most `limit` of the user's notifications with a number below `before`, newest
        first.
        """
        match: dict[str, Any] = {"user.$id": user_id}
        if before is not None:
            match["seq"] = {"$lt": before}
        return await cls.find(match, sort="-seq", limit=limit).to_list()


async def notify(user_id: PydanticObjectId, activity: Activity, tx: Tx, /, **data: Any) -> None:
    """Store the activity's notification for the user, with the user's next number and `data` for
    its text.

    In the caller's transaction. Increments `notice_seq` of the user, and does nothing if there is
    no such user. Open pages get it from the change stream after the commit. If the user has chosen
    to get such notifications by email, also queues an email to their verified address, within the
    mail budget. Raises TypeError for an activity without a notification.
    """
    numbered = await documents(USERS).find_one_and_update(
        {"_id": user_id},
        {"$inc": {"notice_seq": 1}},
        projection=NEEDED,
        return_document=ReturnDocument.AFTER,
        session=tx,
    )
    if numbered:
        seq, kind = numbered["notice_seq"], activity.notification_kind
        await Notice(user=user_ref(user_id), seq=seq, kind=kind, data=data).insert(session=tx)
        await _queue_email(numbered, activity, data, tx)


async def _queue_email(
    user: Mapping[str, Any], activity: Activity, data: Mapping[str, Any], tx: Tx
) -> None:
    """Queue the email with the notification if the user has chosen its group and has a verified
    address."""
    notification = activity.notification
    if notification is None or notification.email_group not in stored_groups(user):
        return
    if user.get("email_verified_at") is None:
        return
    texts = as_texts({name: data.get(name) for name in notification.words()})
    kind = {"notification_kind": notification.kind}
    await Mail.queue(NOTIFICATION_BY_EMAIL, user["email"], user=user["_id"], tx=tx, **texts, **kind)


async def notify_all(
    user_ids: Collection[PydanticObjectId], activity: Activity, tx: Tx, /, **data: Any
) -> None:
    """Store the same notification for many users, in three operations for any number of them, and
    queue emails as `notify` does, each with operations of its own.

    In the caller's transaction. Increments `notice_seq` of each user, which is the number of the
    notification; ids without a user are ignored. Raises TypeError for an activity without a
    notification.
    """
    kind, match = activity.notification_kind, {"_id": {"$in": list(user_ids)}}
    await documents(USERS).update_many(match, {"$inc": {"notice_seq": 1}}, session=tx)
    numbered = await documents(USERS).find(match, NEEDED, session=tx).to_list(None)
    notices = [
        Notice(user=user_ref(row["_id"]), seq=row["notice_seq"], kind=kind, data=data)
        for row in numbered
    ]
    if notices:
        await Notice.insert_many(notices, session=tx)
    for row in numbered:
        await _queue_email(row, activity, data, tx)
