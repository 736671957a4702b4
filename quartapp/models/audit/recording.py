"""Record an activity with everything that its entry in the catalogue asks for."""

from collections.abc import Mapping
from typing import Any

from beanie import PydanticObjectId

from quartapp.activities import Activity, Email, Notification, Notified
from quartapp.db.mongo import Tx
from quartapp.log import log
from quartapp.models.accounts.account import Account
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import Actor
from quartapp.models.email.outbox import Mail
from quartapp.models.notifications.notice import notify


async def record(
    activity: Activity,
    user: Account | PydanticObjectId,
    *,
    by: Actor,
    tx: Tx,
    event: Event | None = None,
    words: Mapping[str, Any] | None = None,
    **details: Any,
) -> Event:
    """Notify and email the user as the activity says, insert its audit event, and return that.

    The three are written in this order, in the caller's transaction. `details` are stored in the
    event, whose subject is the user, and fill the texts. `words` are for the texts alone and take
    precedence; `{by}` and `{ip}` are the actor's. `event` is the event if the caller has created it
    already with `Event.of`, with its details. For an activity with an email, `user` has to be the
    document. Raises TypeError for an activity without an audit name or if a word is missing.
    """
    user_id = user.id if isinstance(user, Account) else user
    if event is None:
        event = Event.of(activity, by=by, subject=user_id, **details)
    await _inform(activity, user, by, tx, {**event.details, **(words or {})})
    return await event.insert(session=tx)


async def inform(
    activity: Activity, user: Account | PydanticObjectId, *, by: Actor, tx: Tx, **words: Any
) -> None:
    """Notify and email the user as the activity says, without an audit event.

    Notifications to an inviter or to the holders of a role are left to the caller. Raises TypeError
    if one of the `words` of the texts is missing.
    """
    await _inform(activity, user, by, tx, words)


async def _inform(
    activity: Activity,
    user: Account | PydanticObjectId,
    by: Actor,
    tx: Tx,
    words: Mapping[str, Any],
) -> None:
    user_id = user.id if isinstance(user, Account) else user
    own = by.user_id == user_id
    if activity.notification and (
        activity.notified is Notified.USER
        or (activity.notified is Notified.USER_UNLESS_ACTOR and not own)
    ):
        data = _pick(activity.notification, {"by": by.username, **words})
        await notify(user_id, activity, tx, **data)
    email = activity.email if own else (activity.email_by_others or activity.email)
    if email is not None:
        if not isinstance(user, Account):
            raise TypeError(f"the email {email.kind} needs the user's document")
        data = _pick(email, {"by": by.username or "An operator", "ip": by.ip, **words})
        texts = {name: None if word is None else str(word) for name, word in data.items()}
        await queue_email(user, email, tx, **texts)


async def queue_email(user: Account, what: Activity | Email, tx: Tx, /, **data: str | None) -> None:
    """Queue the email to the user's address, with `data` for its text.

    An unverified address may belong to somebody else: then it queues nothing and logs that.
    """
    if not user.verified:
        kind = what.kind if isinstance(what, Email) else what.email_kind
        log.warning("mail_suppressed", email=kind, user=str(user.id), why="unverified")
        return
    await Mail.queue(what, user.email, user=user.id, tx=tx, **data)


def _pick(text: Notification | Email, words: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the words that are stored with the notification or email."""
    names = text.words()
    if missing := [name for name in names if name not in words]:
        raise TypeError(f"{text.kind} needs the words {', '.join(missing)}")
    return {name: words[name] for name in (*names, *text.also_stores) if name in words}
