"""A user's own audit events as sentences, and reporting one of them as "This wasn't me"."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Self

from beanie import PydanticObjectId

from quartapp.activities import (
    ACTIVITY_DISOWNED,
    EMAIL_CHANGED,
    SIGNED_IN,
    Activity,
    catalogue,
)
from quartapp.db.mongo import Tx
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import documents, fetch_links
from quartapp.models.base.references import EVENTS, USERS, DomainError, linked_id
from quartapp.models.email.outbox import Mail
from quartapp.models.factors.factor import described
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session, count_active, mark_ended


class OwnSession(DomainError):
    """The user reports the sign-in of the session that they are using."""

    def __init__(self) -> None:
        super().__init__(_("This is the session that you are using. To end it, sign out."))


@dataclass(frozen=True)
class Entry:
    """An audit event as shown to its user.

    `by` is the name of the actor if that is somebody else. The IP address and the session of other
    people are left out. `reportable` is whether the page offers "This wasn't me".
    """

    event: Event
    text: str
    by: str | None
    device: str | None
    ip: str | None
    session: Session | None
    reportable: bool

    @classmethod
    def of(
        cls,
        event: Event,
        user_id: PydanticObjectId,
        sessions: Mapping[PydanticObjectId, Session],
    ) -> Self:
        """Return the entry for an event of this user.

        `by` is None if the user did it, or no person did; else a username, "an operator" or "a
        deleted user". `session` is looked up in `sessions`, and only for what the user did;
        `device` is that of the event's details, whoever did it, or else that of the session.
        """
        own = _is_actor(user_id, event)
        session = sessions.get(event.session) if own and event.session else None
        device = event.details.get("device") or (session and session.device)
        return cls(
            event=event,
            text=text(event),
            by=None if own or event.automatic else _name(event.actor),
            device=device,
            ip=event.ip if own else None,
            session=session,
            reportable=is_reportable(event, user_id),
        )


def _name(actor: Any) -> str:
    """Return the username of a fetched actor; "an operator" for None, "a deleted user" for a mere
    link.
    """
    return _("an operator") if actor is None else getattr(actor, "username", _("a deleted user"))


async def page(
    user_id: PydanticObjectId, *, before: PydanticObjectId | None, limit: int
) -> list[Event]:
    """Return at most `limit` of the user's events that have a sentence, newest first. The actor is
    fetched if it is somebody else.

    Includes events about many users that the user document lists in `common_events`. `before` is
    the id of the last event of the page before. Sends two queries at once, and one more for the
    actors.
    """
    verbs = catalogue.on_activity_page()
    own, common = await asyncio.gather(
        Event.page(subject=user_id, verbs=verbs, before=before, limit=limit, fetch=()),
        _common_events(user_id, verbs, before),
    )
    rows = {event.id: event for event in (*own, *common)}
    events = sorted(rows.values(), key=attrgetter("id"), reverse=True)[:limit]
    await fetch_links([each for each in events if not _is_actor(user_id, each)], ["actor"])
    return events


async def _common_events(
    user_id: PydanticObjectId, verbs: Collection[str], before: PydanticObjectId | None
) -> list[Event]:
    """Return those of the user's `common_events` that the page may show, in no order."""
    row = await documents(USERS).find_one({"_id": user_id}, {"common_events": 1}) or {}
    ids = [each for each in row.get("common_events", ()) if before is None or each < before]
    return await Event.find({"_id": {"$in": ids}, "verb": {"$in": verbs}}).to_list() if ids else []


def _is_actor(user_id: PydanticObjectId, event: Event) -> bool:
    return event.actor is not None and linked_id(event.actor) == user_id


async def latest(user_id: PydanticObjectId, activity: Activity) -> Event | None:
    """Return the user's latest event with the audit name of the activity, or None."""
    found = await Event.page(subject=user_id, verbs=[activity.audit_name], limit=1)
    return found[0] if found else None


async def find(event_id: PydanticObjectId, user_id: PydanticObjectId) -> Event | None:
    """Return the event if it exists and this user may report it (`is_reportable`), else None."""
    event = await Event.get(event_id)
    return event if event and is_reportable(event, user_id) else None


def text(event: Event) -> str:
    """Return the sentence of the event, without the actor and without a full stop; empty for an
    activity that this version does not know.

    A word that was not stored is left out. Roles are joined with commas, and a kind of factor is
    replaced by its name.
    """
    activity = catalogue.find(event.verb, automatic=event.automatic)
    if activity is None:
        return ""
    words = {**event.details, "roles": ", ".join(event.details.get("roles", ()))}
    if "factor" in words:
        words["factor"] = described(words["factor"])
    return activity.describe(words)


def is_reportable(event: Event, user_id: PydanticObjectId) -> bool:
    """Return whether the event was done in this user's name to their own account, and is of a kind
    that somebody else with their password could have done.
    """
    own = _is_actor(user_id, event)
    concerned = event.subject is not None and linked_id(event.subject) == user_id
    activity = catalogue.find(event.verb)
    return own and concerned and activity is not None and activity.reportable


async def disowned(
    user_id: PydanticObjectId, ids: Collection[PydanticObjectId]
) -> set[PydanticObjectId]:
    """Return which of these events the user has reported as not being theirs."""
    match = {"subject.$id": user_id, "verb": ACTIVITY_DISOWNED.audit}
    found = documents(EVENTS).find(
        {**match, "details.event": {"$in": list(ids)}}, {"details.event": 1}
    )
    return {row["details"]["event"] for row in await found.to_list(None)}


async def disown(event: Event, *, by: Actor) -> Event:
    """Record that the user reports this event as not theirs, and return the audit event
    ACTIVITY_DISOWNED.

    In an authorized transaction with a barrier mark, for which the caller waits: ends all sessions
    of the user but the actor's (reason ENDED_BY_USER; `details["count"]` says how many were
    active), makes all other browsers unknown, and queues an email to the user's verified address
    and to each verified address that was replaced since the event. No notification. A second report
    of the event does all this again. Does not check whether the event is reportable: `find` does.
    Raises OwnSession for the sign-in that opened the actor's own session, SessionOver and
    RightsChanged.
    """
    if event.session == by.session_id and event.verb == SIGNED_IN.audit:
        raise OwnSession

    async def work(tx: Tx) -> Event:
        said = Event.of(ACTIVITY_DISOWNED, by=by, subject=by.user_id, event=event.id, of=event.verb)
        others = {"user.$id": by.user_id, "_id": {"$ne": by.session_id}}
        said.details["count"] = await count_active(others, tx)
        await mark_ended(others, Reason.ENDED_BY_USER, by=by, event=said, tx=tx)
        user = await User.get(by.user_id, session=tx)
        if user:
            await user.forget_browsers(tx=tx, keep=by.session_id)
            # The intruder may have changed the address, and read the mail of the new one.
            mine = [user.email] if user.email_verified_at else []
            for email in (*mine, *await _given_up_since(event, user.id, tx)):
                words = {"event": str(event.id), "when": event.at.isoformat()}
                await Mail.queue(ACTIVITY_DISOWNED, email, user=user.id, tx=tx, **words)
        return await said.insert(session=tx)

    return await authorized_transaction(by, work, ends_sessions=True)


async def _given_up_since(event: Event, user_id: PydanticObjectId, tx: Tx) -> list[str]:
    """Return the verified addresses that were replaced at the time of the event or later. An audit
    event of an older version, which does not say whether it was verified, counts."""
    moved = {"subject.$id": user_id, "verb": EMAIL_CHANGED.audit, "at": {"$gte": event.at}}
    found = Event.find(moved, session=tx)
    return [e.details["was"] async for e in found if e.details.get("verified", True)]
