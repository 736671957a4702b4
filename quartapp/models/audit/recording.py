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
from quartapp.models.email.outbox import Mail, as_texts
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
    """Insert an audit event, and store the notification and queue the email of its activity; return
    the event.

    In the caller's transaction, in the order notification, email, event. Whether there is a
    notification or email depends on the entry of the activity in the catalogue; a notification
    meant for USER_UNLESS_ACTOR is left out if the user did it themselves, those for an inviter,
    for the holders of a role or for administrators are left to the caller. The email goes only to a
    verified address, within the mail budget.

    `details` are stored in the event, whose subject is the user, and fill the texts. They are data,
    such as a datetime, and never a text in the actor's language: each reader has their own. `words`
    fill only the texts, and take precedence; `{by}` and `{ip}` are the actor's. `event` is the
    event if the caller has created it with `Event.of`: then its details are used.

    Raises TypeError for an activity without an audit name, if a word of a text is missing, and if
    the activity has an email but `user` is only an id.
    """
    user_id = user.id if isinstance(user, Account) else user
    if event is None:
        event = Event.of(activity, by=by, subject=user_id, **details)
    await _inform(activity, user, by, tx, {**event.details, **(words or {})})
    return await event.insert(session=tx)


async def inform(
    activity: Activity, user: Account | PydanticObjectId, *, by: Actor, tx: Tx, **words: Any
) -> None:
    """Store the notification and queue the email of the activity as `record` does, filled from
    `words`, in the caller's transaction, without an audit event."""
    await _inform(activity, user, by, tx, words)


async def _inform(
    activity: Activity,
    user: Account | PydanticObjectId,
    by: Actor,
    tx: Tx,
    words: Mapping[str, Any],
) -> None:
    """Store the notification and queue the email of the activity, filled from `words`: see
    `record`.

    If somebody else than the user did it, and the activity has an `email_by_others`, that is queued
    instead of `email`. Raises TypeError as `record` does.
    """
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
        data = _pick(email, {"by": by.username, "ip": by.ip, **words})
        await queue_email(user, email, tx, **as_texts(data))


async def queue_email(user: Account, what: Activity | Email, tx: Tx, /, **data: str | None) -> None:
    """Queue the email to the user's address, with `data` for its text, in the caller's transaction.

    For an unverified address, which may belong to somebody else, queues nothing and logs the
    warning `mail_suppressed`. So does `Mail.queue` past the mail budget. Raises TypeError for an
    activity without an email.
    """
    if not user.verified:
        kind = what.kind if isinstance(what, Email) else what.email_kind
        log.warning("mail_suppressed", email=kind, user=str(user.id), why="unverified")
        return
    await Mail.queue(what, user.email, user=user.id, tx=tx, **data)


def _pick(text: Notification | Email, words: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the words that are stored with the text: all that the text needs, and of
    `also_stores` those that are given. Raises TypeError if one that the text needs is missing."""
    names = text.words()
    if missing := [name for name in names if name not in words]:
        raise TypeError(f"{text.kind} needs the words {', '.join(missing)}")
    return {name: words[name] for name in (*names, *text.also_stores) if name in words}
