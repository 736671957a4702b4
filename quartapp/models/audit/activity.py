"""What has happened to an account, as its owner is told it: the audit record in plain words."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from beanie import PydanticObjectId

from quartapp.db.mongo import Tx
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event, Verb
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import DomainError, linked_id
from quartapp.models.email.outbox import Letter, Mail
from quartapp.models.factors.factor import NAMES, Factor
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session, count_active, mark_ended


@dataclass(frozen=True)
class Line:
    """How an event is told. What is `strange` may have been somebody else with the password."""

    text: str
    strange: bool = False


TEXTS = {
    Verb.USER_REGISTERED: Line("The account was made"),
    Verb.INVITATION_ACCEPTED: Line("An invitation was taken up, which gave: {roles}"),
    Verb.SESSION_STARTED: Line("Signed in", strange=True),
    Verb.SESSION_CONFIRMED: Line("Confirmed with the password", strange=True),
    Verb.SESSION_ENDED: Line("A session was signed out", strange=True),
    Verb.SESSIONS_ENDED: Line("Sessions were signed out", strange=True),
    Verb.PASSWORD_CHANGED: Line("The password was changed", strange=True),
    Verb.PASSWORD_RESET: Line("A forgotten password was replaced", strange=True),
    Verb.EMAIL_CONFIRMED: Line("The e-mail address was confirmed", strange=True),
    Verb.EMAIL_CHANGED: Line("The e-mail address was changed", strange=True),
    Verb.EMAIL_RESTORED: Line("A change of the email address was undone", strange=True),
    Verb.FACTOR_ADDED: Line("A second factor was added: {factor}", strange=True),
    Verb.FACTOR_REMOVED: Line("A second factor was removed: {factor}", strange=True),
    Verb.FACTORS_RESET: Line("All second factors were removed"),
    Verb.PASSKEY_REFUSED: Line("A passkey was refused, for there may be a copy", strange=True),
    Verb.CODES_BLOCKED: Line("Too many wrong codes were typed, and codes no longer sign in"),
    Verb.RECOVERY_CODE_USED: Line("A recovery code was used", strange=True),
    Verb.RECOVERY_CODES_MADE: Line("New recovery codes were made", strange=True),
    Verb.ROLE_GRANTED: Line("The role {role} was given"),
    Verb.ROLE_REVOKED: Line("The role {role} was taken"),
    Verb.ROLE_DELETED: Line("The role {role}, which you held, was deleted"),
    Verb.USER_DISABLED: Line("The account was disabled"),
    Verb.USER_ENABLED: Line("The account was enabled again"),
    Verb.LAST_DAY_SET: Line("{day} was made the last day of the account"),
    Verb.LAST_DAY_LIFTED: Line("The account has no last day any more"),
    Verb.USER_DEACTIVATED: Line("The account was closed", strange=True),
    Verb.USER_LEAVING: Line("The account was closed, to be deleted", strange=True),
    Verb.USER_RESTORED: Line("The account was opened again", strange=True),
    Verb.DATA_EXPORTED: Line("All data of the account was downloaded", strange=True),
    Verb.ACTIVITY_DISOWNED: Line(
        "You said that something was not you, and any other session was ended"
    ),
}
# Of these, those that nobody did: a rule held.
BY_RULE = {
    Verb.USER_DISABLED: "The account was disabled, for its last day was over",
    Verb.LAST_DAY_LIFTED: "The account stays: its last day would have left no administrator",
}


class OwnSession(DomainError):
    """Who says that a sign-in was not them says so in the session that it began."""

    def __init__(self) -> None:
        super().__init__("This is the session that you are using. To end it, sign out.")


@dataclass(frozen=True)
class Entry:
    """An event as its owner reads it. Where others did something from is not theirs to know."""

    event: Event
    text: str
    by: str | None
    device: str | None
    ip: str | None
    session: Session | None
    strange: bool

    @classmethod
    def of(
        cls,
        event: Event,
        user_id: PydanticObjectId,
        sessions: Mapping[PydanticObjectId, Session],
    ) -> Self:
        own = event.actor is not None and linked_id(event.actor) == user_id
        session = sessions.get(event.session) if own and event.session else None
        device = event.details.get("device") or (session and session.device)
        return cls(
            event=event,
            text=text(event),
            by=None if own or event.by_rule else _name(event.actor),
            device=device,
            ip=event.ip if own else None,
            session=session,
            strange=is_strange(event, user_id),
        )


def _name(actor: Any) -> str:
    """Of who did it; a link whose document is gone has no name."""
    return "an operator" if actor is None else getattr(actor, "username", "somebody who has left")


async def page(
    user_id: PydanticObjectId, *, before: PydanticObjectId | None, limit: int
) -> list[Event]:
    """The newest first, with their actors."""
    user = await User.get(user_id)
    common = user.common_events if user else []
    return await Event.page(
        subject=user_id, common=common, verbs=TEXTS.keys(), before=before, limit=limit
    )


async def latest(user_id: PydanticObjectId, verb: Verb) -> Event | None:
    found = await Event.page(subject=user_id, verbs=[verb], limit=1)
    return found[0] if found else None


async def find(event_id: PydanticObjectId, user_id: PydanticObjectId) -> Event | None:
    """An event of this person's timeline that may have been somebody else."""
    event = await Event.get(event_id)
    return event if event and is_strange(event, user_id) else None


def text(event: Event) -> str:
    """A sentence. Details of an older form leave a gap rather than an error."""
    if event.by_rule and event.verb in BY_RULE:
        return BY_RULE[event.verb]
    words = {"role": "", "day": "", "factor": ""} | event.details
    words["roles"] = ", ".join(event.details.get("roles", ()))
    if words["factor"] in set(Factor):
        words["factor"] = NAMES[Factor(words["factor"])]
    return TEXTS[event.verb].text.format_map(words)


def is_strange(event: Event, user_id: PydanticObjectId) -> bool:
    """Whether it was done in this person's name to their own account, by whoever it was."""
    mine = event.actor is not None and linked_id(event.actor) == user_id
    concerned = event.subject is not None and linked_id(event.subject) == user_id
    return mine and concerned and event.verb in TEXTS and TEXTS[event.verb].strange


async def disowned(
    user_id: PydanticObjectId, ids: Collection[PydanticObjectId]
) -> set[PydanticObjectId]:
    """Those of the events of which the person has said that it was not them."""
    match = {"subject.$id": user_id, "verb": Verb.ACTIVITY_DISOWNED}
    found = Event.find({**match, "details.event": {"$in": list(ids)}})
    return {event.details["event"] async for event in found}


async def disown(event: Event, *, by: Actor) -> Event:
    """Its owner says that it was somebody else: every session but theirs is ended, for whoever knew
    the password may have opened any of them. Raises OwnSession."""
    if event.session == by.session_id and event.verb is Verb.SESSION_STARTED:
        raise OwnSession

    async def work(tx: Tx) -> Event:
        said = Event.of(
            Verb.ACTIVITY_DISOWNED, by=by, subject=by.user_id, event=event.id, of=event.verb.value
        )
        others = {"user.$id": by.user_id, "_id": {"$ne": by.session_id}}
        said.details["count"] = await count_active(others, tx)
        await mark_ended(others, Reason.ENDED_BY_USER, by=by, event=said, tx=tx)
        user = await User.get(by.user_id, session=tx)
        if user:
            await user.forget_browsers(tx=tx, keep=by.session_id)
            # Whoever it was may have changed the address, and reads the mail of the new one.
            mine = [user.email] if user.email_verified_at else []
            for email in (*mine, *await _given_up_since(event, user.id, tx)):
                words = {"what": text(event), "when": event.at.isoformat()}
                await Mail.queue(Letter.DISOWNED, email, user=user.id, tx=tx, **words)
        return await said.insert(session=tx)

    return await authorized_transaction(by, work, ends_sessions=True)


async def _given_up_since(event: Event, user_id: PydanticObjectId, tx: Tx) -> list[str]:
    """The addresses that the account had before, if it got another with this event or later."""
    moved = {"subject.$id": user_id, "verb": Verb.EMAIL_CHANGED, "at": {"$gte": event.at}}
    found = Event.find(moved, session=tx)
    return [e.details["was"] async for e in found if e.details.get("verified", True)]
