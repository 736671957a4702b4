"""Notices: what a person is told. Stored before it is sent, numbered for each without a gap."""

from collections.abc import Collection
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import IndexModel, ReturnDocument

from quartapp import clock
from quartapp.db.mongo import Tx
from quartapp.models.base.record import Record, documents
from quartapp.models.base.references import USERS, UserRef, user_ref

KEPT = timedelta(days=90)


class Kind(StrEnum):
    """What a notice is about."""

    WELCOME = "welcome"
    ROLE_GRANTED = "role.granted"
    ROLE_REVOKED = "role.revoked"
    ROLE_DELETED = "role.deleted"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105
    EMAIL_CHANGED = "email.changed"
    EMAIL_RESTORED = "email.restored"
    FACTOR_ADDED = "factor.added"
    FACTOR_REMOVED = "factor.removed"
    PASSKEY_REFUSED = "passkey.refused"
    CODES_REFUSED = "codes.refused"
    CODES_BLOCKED = "codes.blocked"
    FACTORS_RESET = "factors.reset"
    RECOVERY_CODE_USED = "recovery_code.used"
    RECOVERY_CODES_MADE = "recovery_codes.made"
    ACCOUNT_DISABLED = "account.disabled"
    ACCOUNT_ENABLED = "account.enabled"
    LAST_DAY_SET = "last_day.set"
    LAST_DAY_LIFTED = "last_day.lifted"
    LAST_DAY_OVER = "last_day.over"
    INVITATION_ACCEPTED = "invitation.accepted"
    ACCOUNT_CLOSED = "account.closed"
    ACCOUNT_RESTORED = "account.restored"
    SESSIONS_ENDED = "sessions.ended"
    POST_REMOVED = "post.removed"
    COMMENT_REMOVED = "comment.removed"
    COMMENT_ADDED = "comment.added"


TEXTS = {
    Kind.WELCOME: "Welcome, {by}. This is where you are told what changes for you.",
    Kind.ROLE_GRANTED: "{by} gave you the role {role}.",
    Kind.ROLE_REVOKED: "{by} took the role {role} from you.",
    Kind.ROLE_DELETED: "{by} deleted the role {role}, which you held.",
    Kind.PASSWORD_CHANGED: "Your password was changed. Any other session has ended.",
    Kind.EMAIL_CHANGED: "Your e-mail address was changed.",
    Kind.EMAIL_RESTORED: "A change of your email address was undone from the old address.",
    Kind.PASSKEY_REFUSED: "A sign-in with your {factor} was refused: there may be a copy of it.",
    Kind.FACTOR_ADDED: "Your account has a new second factor: {factor}.",
    Kind.FACTOR_REMOVED: "A second factor was removed from your account: {factor}.",
    Kind.CODES_REFUSED: "Your password was typed, then wrong codes. Whoever it was did not get in.",
    Kind.CODES_BLOCKED: "There were too many wrong codes: codes no longer sign in to your account.",
    Kind.FACTORS_RESET: "{by} removed all second factors from your account.",
    Kind.RECOVERY_CODE_USED: "Somebody signed in with one of your recovery codes. Left: {left}.",
    Kind.RECOVERY_CODES_MADE: "New recovery codes were made. The old ones are void.",
    Kind.ACCOUNT_DISABLED: "{by} disabled your account.",
    Kind.ACCOUNT_ENABLED: "{by} enabled your account again.",
    Kind.LAST_DAY_SET: "{by} set your last day: {day}. Your account is disabled at its end.",
    Kind.LAST_DAY_LIFTED: "{by} took your last day back. Your account stays.",
    Kind.LAST_DAY_OVER: "Your last day was {day}, and your account was disabled at its end.",
    Kind.INVITATION_ACCEPTED: "{by} took up your invitation to {email}.",
    Kind.ACCOUNT_CLOSED: "{by} closed your account.",
    Kind.ACCOUNT_RESTORED: "{by} opened your account again.",
    Kind.SESSIONS_ENDED: "{by} ended your sessions.",
    Kind.POST_REMOVED: "{by} removed your post “{title}”.",
    Kind.COMMENT_REMOVED: "{by} removed your comment on “{title}”.",
    Kind.COMMENT_ADDED: "{by} commented on “{title}”.",
}


class Notice(Record):
    """One thing a person was told. `seq` rises by one with each of that person's notices.

    Its order is the order of the commits: the number is taken from the user's document in the
    transaction that stores the notice. Object ids, made by many workers, have no such order.
    """

    user: UserRef
    seq: int
    kind: Kind
    data: dict[str, Any] = {}
    created_at: datetime = Field(default_factory=clock.now)
    read_at: datetime | None = None

    class Settings:
        name = "notices"
        indexes = [
            IndexModel([("user.$id", 1), ("seq", 1)], name="in_order", unique=True),
            # For forgetting a name that others were told.
            IndexModel([("data.by", 1)], name="naming", sparse=True),
            IndexModel([("data.author", 1)], name="quoting", sparse=True),
            IndexModel(
                [("created_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            ),
        ]

    @property
    def text(self) -> str:
        return notice_text(self.kind, self.data)

    @classmethod
    async def after(cls, user_id: PydanticObjectId, seq: int, *, limit: int = 100) -> list[Self]:
        """What came after the cursor, oldest first: what a client that was away has missed."""
        return await cls.find(
            {"user.$id": user_id, "seq": {"$gt": seq}}, sort="seq", limit=limit
        ).to_list()

    @classmethod
    async def page(
        cls, user_id: PydanticObjectId, *, before: int | None = None, limit: int = 30
    ) -> list[Self]:
        """The newest first."""
        match: dict[str, Any] = {"user.$id": user_id}
        if before is not None:
            match["seq"] = {"$lt": before}
        return await cls.find(match, sort="-seq", limit=limit).to_list()


async def notify(user_id: PydanticObjectId, kind: Kind, tx: Tx, **data: Any) -> None:
    """Store a notification with the user's next number, in the transaction of what it is about."""
    numbered = await documents(USERS).find_one_and_update(
        {"_id": user_id},
        {"$inc": {"notice_seq": 1}},
        projection={"notice_seq": 1},
        return_document=ReturnDocument.AFTER,
        session=tx,
    )
    if numbered:
        seq = numbered["notice_seq"]
        await Notice(user=user_ref(user_id), seq=seq, kind=kind, data=data).insert(session=tx)


async def notify_all(
    user_ids: Collection[PydanticObjectId], kind: Kind, tx: Tx, **data: Any
) -> None:
    """Store the same notification for many users, in three operations however many they are."""
    match = {"_id": {"$in": list(user_ids)}}
    await documents(USERS).update_many(match, {"$inc": {"notice_seq": 1}}, session=tx)
    numbered = documents(USERS).find(match, {"notice_seq": 1}, session=tx)
    notices = [
        Notice(user=user_ref(row["_id"]), seq=row["notice_seq"], kind=kind, data=data)
        for row in await numbered.to_list(None)
    ]
    if notices:
        await Notice.insert_many(notices, session=tx)


def notice_text(kind: str, data: dict[str, Any]) -> str:
    """The sentence that a person reads. Data of an older form leaves a gap rather than an error."""
    words = dict.fromkeys(("role", "title", "day", "email", "factor", "left"), "") | data
    words["by"] = data.get("by") or "An operator"
    return TEXTS[Kind(kind)].format_map(words) if kind in set(Kind) else "Something changed."
