"""What each collection stores about a person, what the export shows of it, and how it is erased.

Each collection with personal data has an entry in PERSONAL, the others are listed in IMPERSONAL or
IDS_ONLY. A test fails for a collection that is in none of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from beanie import Document
from pymongo.collation import Collation

from quartapp.activities import (
    A_POST,
    DELETED_USER,
    INVITATION_ACCEPTED,
    THEIR_ADDRESS,
)
from quartapp.db.mongo import Tx
from quartapp.models.accounts.bulk_action import BulkAction
from quartapp.models.accounts.one_time_token import Token
from quartapp.models.accounts.user import User
from quartapp.models.audit import erasing
from quartapp.models.audit.event import Event
from quartapp.models.audit.event_receipts import EventReceipts
from quartapp.models.audit.seal import Seal, UnsealedEntry
from quartapp.models.base.record import AT_ONCE, BATCH, Record
from quartapp.models.base.references import CASELESS
from quartapp.models.base.write_lock import WriteLock
from quartapp.models.cluster.acknowledgement import Acknowledgement
from quartapp.models.cluster.barrier_mark import BarrierMark
from quartapp.models.cluster.worker import Worker
from quartapp.models.email.mailbox import Mailbox
from quartapp.models.email.outbox import Mail
from quartapp.models.factors.passkey import Answered, Passkey
from quartapp.models.invitations.invitation import Invitation
from quartapp.models.limits.counter import Counter
from quartapp.models.limits.failed_attempts import FailedAttempts
from quartapp.models.limits.hash_cost import Cost
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.draft import PostDraft
from quartapp.models.posts.erasing import erase_comments, erase_posts
from quartapp.models.posts.post import Post
from quartapp.models.privacy.person import Person, Row, fields, linked
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.roles.request import RoleRequest
from quartapp.models.roles.role import Role
from quartapp.models.sessions.session import Session
from quartapp.models.statistics.hourly_count import HourlyCount

# What erases in batches yields after each of them how many documents it has read.
Batches = AsyncIterator[int]


@dataclass(frozen=True)
class PersonalCollection:
    """How one collection's documents about a person are found, exported and erased.

    `find` returns the filter, `show` what the export contains of a document. Erasing deletes the
    documents, unless `erase_with` is given, which then does it. `caseless` makes the filter ignore
    case, for email addresses.
    """

    document: type[Record]
    find: Callable[[Person], dict[str, Any]]
    show: Callable[[Row, Person], dict[str, Any]]
    erase_with: Callable[[Person], Batches] | None = field(default=None, kw_only=True)
    caseless: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        return self.document.get_collection_name()

    @property
    def collation(self) -> Collation | None:
        return CASELESS if self.caseless else None

    async def rows(self, person: Person) -> AsyncIterator[dict[str, Any]]:
        """Yield the documents about the person as the export shows them. Reads them in batches."""
        found = self.document.get_motor_collection().find(
            self.find(person), batch_size=BATCH, collation=self.collation
        )
        async for row in found:
            yield self.show(row, person)

    def erase(self, person: Person) -> Batches:
        """Delete the documents about the person in batches, or do what `erase_with` does."""
        if self.erase_with:
            return self.erase_with(person)
        return self.document.delete_in_batches(self.find(person), collation=self.collation)


def _emails(person: Person) -> dict[str, Any]:
    """Return the filter for emails of the account, and for emails without an account to its
    addresses.
    """
    unclaimed = {"user": None, "$or": person.addressed("to", "created_at")}
    return {"$or": [{"user.$id": person.user.id}, unclaimed]}


def _show_invitation(row: Row, person: Person) -> dict[str, Any]:
    """Return what the export shows of an invitation that the person sent or received: its times,
    its role, and whether sender and receiver are "you" or "somebody else" (a sender may be "the
    system").

    The email address is shown only if it is the person's own.
    """
    shown = fields("created_at", "accepted_at", "withdrawn_at", "expires_at")(row, person)
    theirs = person.is_behind(row.get("account")) or person.has_had(row["email"])
    by_them = person.is_behind(row.get("by"))
    shown["by"] = "you" if by_them else "somebody else" if row.get("by") else "the system"
    shown["to"] = "you" if theirs else "somebody else"
    if role := row.get("role"):
        shown["role"] = person.roles.get(role.id, "one that is gone")
    return shown | (fields("email")(row, person) if theirs else {})


def _invitations_to(person: Person) -> dict[str, Any]:
    """Return the filter for invitations to the person, accepted or not."""
    return {"$or": [linked("account")(person), *person.addressed("email", "created_at")]}


async def _erase_invitations(person: Person) -> Batches:
    """Delete the invitations to the person.

    Those that the person sent stay, as they contain addresses of others. They are void without an
    inviter.
    """
    async for count in Invitation.delete_in_batches(_invitations_to(person), collation=CASELESS):
        yield count


def _invitation_events(person: Person) -> dict[str, Any]:
    """Return the filter for audit events about invitations to the person's address, which have no
    subject.
    """
    return {"subject": None, "$or": person.addressed("details.email", "at")}


def _events(person: Person) -> dict[str, Any]:
    """Return the filter for audit events that the person did, or that happened to them: as subject,
    as one of many users (`common_events`), or as the receiver of an invitation."""
    common = {"_id": {"$in": person.user.common_events}}
    return {
        "$or": [
            linked("subject")(person),
            linked("actor")(person),
            _invitation_events(person),
            common,
        ]
    }


def _show_event(row: Row, person: Person) -> dict[str, Any]:
    """Return what the export shows of an audit event: its time and name, and whether actor and
    subject are "you" or "somebody else" (an actor may be "the system").

    Names and IP addresses of other people are left out. The session and the IP address are shown
    only for what the person did, the details only for what happened to the person.
    """
    actor, subject = row.get("actor"), row.get("subject")
    by_them = person.is_behind(actor)
    to_them = (
        person.is_behind(subject)
        or row["_id"] in person.user.common_events
        or (subject is None and person.has_had(row["details"].get("email")))
    )
    shown = fields("at", "verb")(row, person)
    shown["by"] = "you" if by_them else "somebody else" if actor else "the system"
    if subject is not None or to_them:
        shown["to"] = "you" if to_them else "somebody else"
    if by_them:
        shown |= fields("session", "ip")(row, person)
    if to_them:
        shown |= fields("details")(row, person)
    return shown


async def _blank_events(person: Person) -> Batches:
    """Remove personal data from the audit events about the person. The events themselves stay.

    Of events that happened to the person, only the details named in LASTING stay. Events that the
    person did lose their IP address. Events that quote the title of a post of the person get a
    placeholder. Writing the same again changes nothing, so a second run writes only what is left.
    """
    # Events with the person's former addresses come last, because after a crash this starts again
    # and needs them.
    for changes in (
        erasing.erase_details(_invitation_events(person), person.user.id, collation=CASELESS),
        erasing.erase_details(linked("subject")(person), person.user.id),
        erasing.erase_address(person.user.id),
        erasing.erase_titles(person.user.id),
    ):
        async for count in changes:
            yield count


PERSONAL = [
    PersonalCollection(
        Session,
        linked("user"),
        fields(
            *("_id", "device", "ip", "page", "created_at", "seen_at", "expires_at", "remembered"),
            *("factor", "confirmed_at", "ended_at", "ended_reason"),
        ),
    ),
    PersonalCollection(
        Passkey,
        linked("user"),
        fields("name", "transports", "backed_up", "created_at", "last_used_at"),
    ),
    PersonalCollection(Notice, linked("user"), fields("kind", "data", "created_at", "read_at")),
    PersonalCollection(
        Token, linked("user"), fields("purpose", "email", "created_at", "expires_at", "used_at")
    ),
    PersonalCollection(
        Mail, _emails, fields("letter", "to", "data", "created_at", "gave_up_at"), caseless=True
    ),
    PersonalCollection(
        Post,
        linked("author"),
        fields("_id", "title", "body", "created_at", "edited_at"),
        erase_with=lambda person: erase_posts(person.user),
    ),
    PersonalCollection(
        Comment,
        linked("author"),
        fields("_id", "post", "body", "created_at"),
        erase_with=lambda person: erase_comments(person.user),
    ),
    PersonalCollection(PostDraft, linked("author"), fields("title", "body", "saved_at")),
    PersonalCollection(
        Invitation,
        lambda person: {"$or": [linked("by")(person), _invitations_to(person)]},
        _show_invitation,
        erase_with=_erase_invitations,
        caseless=True,
    ),
    PersonalCollection(
        RoleRequest,
        linked("user"),
        fields("name", "reason", "created_at", "state", "decided_at", "answer", "until"),
    ),
    PersonalCollection(
        Event,
        _events,
        _show_event,
        erase_with=_blank_events,
        caseless=True,
    ),
]
# Collections without personal data. Failed attempts and queued emails are counted under digests,
# for a limited time.
IMPERSONAL: list[type[Document]] = [
    *(WriteLock, Counter, FailedAttempts, Mailbox, Cost, Answered),
    *(Worker, BarrierMark, Acknowledgement, HourlyCount),
    # Hashes and commitments to personal data, which nobody can invert once the salt is erased.
    *(EventReceipts, UnsealedEntry, Seal),
]
# Collections that have only the ids of users: of the one who made a change in this field, and
# perhaps of those whom it concerned. The events of these users say the same; they are exported, and
# the ids refer to nobody when the account is erased.
IDS_ONLY: dict[type[Document], str] = {Role: "changed_by", RoleDeletion: "by", BulkAction: "by"}


async def erase(person: Person) -> Batches:
    """Erase the person's data in all collections but that of the users, in small writes.

    Erases each collection in PERSONAL, and the name in the notifications of others. Yields after
    each write how many documents it has read, so that the caller can stop. It can be run again from
    the beginning, and then finds only what is left.
    """
    for personal in PERSONAL:
        async for count in personal.erase(person):
            yield count
    async for count in forget_name(person.user):
        yield count


async def forget_name(user: User) -> Batches:
    """Replace the erased user's name in the notifications of other users.

    The name of the actor becomes "A deleted user". Where an invitation was accepted, the email
    address is replaced too. In notifications about comments on a post of this user, so is the title
    of the post.
    """
    async for ids in Notice.batches({"data.by": user.username}):
        told = {"_id": {"$in": ids}}
        invited = {**told, "kind": INVITATION_ACCEPTED.notification_kind}
        await Notice.change_all(invited, {"$set": {"data.email": THEIR_ADDRESS}})
        await Notice.change_all(told, {"$set": {"data.by": DELETED_USER}})
        yield len(ids)
    async for ids in Notice.batches({"data.author": user.id}):
        blank = {"$set": {"data.title": A_POST}, "$unset": {"data.author": ""}}
        await Notice.change_all({"_id": {"$in": ids}}, blank)
        yield len(ids)


async def sweep(person: Person, tx: Tx) -> bool:
    """Delete in this transaction what was added since the collections were erased.

    Covers only the collections in PERSONAL whose documents are deleted, not those with
    `erase_with`. Returns False if a collection has more than AT_ONCE such documents: then the
    caller aborts the transaction and erases again.
    """
    for personal in PERSONAL:
        if personal.erase_with is None:
            options = {"collation": personal.collation, "limit": AT_ONCE + 1, "tx": tx}
            ids = await personal.document.ids(personal.find(person), **options)
            if len(ids) > AT_ONCE:
                return False
            collection = personal.document.get_motor_collection()
            await collection.delete_many({"_id": {"$in": ids}}, session=tx)
    return True
