"""What is held about a person: the one list of it, by which it is shown to them and erased.

A collection that holds something about people has a line in HELD; one that does not is named in
IMPERSONAL. A test fails for a collection that is in neither.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from beanie import Document, PydanticObjectId
from bson import DBRef

from quartapp.database import Session as Tx
from quartapp.database import transaction
from quartapp.models.actor import Actor
from quartapp.models.allowance import Allowance
from quartapp.models.comment import Comment
from quartapp.models.cost import Cost
from quartapp.models.event import Event, Verb
from quartapp.models.factor import NAMES
from quartapp.models.guard import Guard
from quartapp.models.guess import Guesses
from quartapp.models.invitation import Invitation
from quartapp.models.mail import Mail
from quartapp.models.notice import Notice
from quartapp.models.passkey import Answered, Passkey
from quartapp.models.post import Post
from quartapp.models.role import Role
from quartapp.models.session import Session, acting
from quartapp.models.token import Token
from quartapp.models.user import User
from quartapp.models.worker import Barrier, Worker

Row = Mapping[str, Any]
BATCH = 500
NOBODY_NOW = "Somebody who has left"
ACCOUNT = (
    *("username", "email", "email_verified_at", "pending_email", "created_at"),
    *(
        "password_changed_at",
        "letters_asked",
        "disabled_at",
        "closes_at",
        "closed_at",
        "deletes_at",
    ),
)
# Of an event's details, what says nothing about the person.
LASTING = ("role", "roles", "reason", "count", "until")


def fields(*names: str) -> Callable[[Row, User], dict[str, Any]]:
    """Shows these fields of a document and no others, so that no secret is shown unawares."""
    return lambda row, user: {name: row[name] for name in names if row.get(name) is not None}


def linked(field: str) -> Callable[[User], dict[str, Any]]:
    """Finds the documents whose link leads to the person."""
    return lambda user: {f"{field}.$id": user.id}


@dataclass(frozen=True)
class Holding:
    """What one collection holds about a person: how it is found, shown to them, and erased.

    Erased is deleted, unless `erase_with` says another way.
    """

    document: type[Document]
    find: Callable[[User], dict[str, Any]]
    show: Callable[[Row, User], dict[str, Any]]
    erase_with: Callable[[User], Awaitable[None]] | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        return self.document.get_collection_name()

    async def rows(self, user: User) -> AsyncIterator[dict[str, Any]]:
        """As they are shown; never more than a page of them in memory."""
        found = self.document.get_motor_collection().find(self.find(user), batch_size=BATCH)
        async for row in found:
            yield self.show(row, user)

    async def erase(self, user: User) -> None:
        if self.erase_with:
            return await self.erase_with(user)
        async for ids in _batches(self.document, self.find(user)):
            await self.document.get_motor_collection().delete_many({"_id": {"$in": ids}})
        return None


def _letters(user: User) -> dict[str, Any]:
    addresses = [address for address in (user.email, user.pending_email) if address]
    return {"$or": [{"user.$id": user.id}, {"to": {"$in": addresses}}]}


def _events(user: User) -> dict[str, Any]:
    return {"$or": [{"subject.$id": user.id}, {"actor.$id": user.id}]}


def _event(row: Row, user: User) -> dict[str, Any]:
    """Who and where others are is their own affair, also where they did something to the person."""
    actor, subject = row.get("actor"), row.get("subject")
    by_them = actor is not None and actor.id == user.id
    to_them = subject is not None and subject.id == user.id
    shown = fields("at", "verb")(row, user)
    shown["by"] = "you" if by_them else "somebody else" if actor else "the system"
    if subject is not None:
        shown["to"] = "you" if to_them else "somebody else"
    if by_them:
        shown |= fields("session", "ip")(row, user)
    if to_them:
        shown |= fields("details")(row, user)
    return shown


def _invited(user: User) -> dict[str, Any]:
    """What was done about an invitation to their address, when there was no account yet."""
    return {"subject": None, "details.email": user.email}


async def _blank_events(user: User) -> None:
    """The record keeps its lines and the numbers of those concerned; nothing says who it was."""
    events = Event.get_motor_collection()
    details = {name: f"$details.{name}" for name in LASTING}
    blank = {"$replaceWith": {"$mergeObjects": ["$$ROOT", {"details": details}]}}
    async for ids in _batches(Event, {"$or": [{"subject.$id": user.id}, _invited(user)]}):
        await events.update_many({"_id": {"$in": ids}}, [blank])
    async for ids in _batches(Event, {"actor.$id": user.id}):
        await events.update_many({"_id": {"$in": ids}}, {"$set": {"ip": None}})


async def _erase_invitation(user: User) -> None:
    """Their own goes. Those that they wrote are about others, and void from now on."""
    await Invitation.get_motor_collection().delete_many(linked("account")(user))


async def _erase_posts(user: User) -> None:
    """Those that stay keep the number of their author, behind which there is nobody any more."""
    if user.deletes_posts:
        posts, below = Post.get_motor_collection(), Comment.get_motor_collection()
        async for ids in _batches(Post, {"author.$id": user.id}):
            async for under in _batches(Comment, {"post.$id": {"$in": ids}}):
                await below.delete_many({"_id": {"$in": under}})
            await posts.delete_many({"_id": {"$in": ids}})


async def _erase_comments(user: User) -> None:
    if user.deletes_posts:
        async for ids in _batches(Comment, {"author.$id": user.id}):
            await _remove_comments(ids)


async def _remove_comments(ids: list[PydanticObjectId]) -> None:
    """Those that are still there, and takes them off the counts of their posts."""

    async def work(tx: Tx) -> None:
        comments = Comment.get_motor_collection()
        group = {"$group": {"_id": "$post.$id", "count": {"$sum": 1}}}
        there = {"_id": {"$in": ids}}
        counted = comments.aggregate([{"$match": there}, group], session=tx)
        for row in await counted.to_list(None):
            taken = {"$inc": {"comment_count": -row["count"]}}
            await Post.change({"_id": row["_id"]}, taken, tx=tx)
        await comments.delete_many(there, session=tx)

    await transaction(work)


HELD = [
    Holding(
        Session,
        linked("user"),
        fields(
            *("_id", "device", "ip", "created_at", "seen_at", "expires_at", "remembered"),
            *("factor", "confirmed_at", "ended_at", "ended_reason"),
        ),
    ),
    Holding(
        Passkey,
        linked("user"),
        fields("name", "transports", "backed_up", "created_at", "last_used_at"),
    ),
    Holding(Notice, linked("user"), fields("kind", "data", "created_at", "read_at")),
    Holding(
        Token, linked("user"), fields("purpose", "email", "created_at", "expires_at", "used_at")
    ),
    Holding(Mail, _letters, fields("letter", "to", "data", "created_at", "gave_up_at")),
    Holding(
        Post,
        linked("author"),
        fields("_id", "title", "body", "created_at", "edited_at"),
        erase_with=_erase_posts,
    ),
    Holding(
        Comment,
        linked("author"),
        fields("_id", "post", "body", "created_at"),
        erase_with=_erase_comments,
    ),
    Holding(
        Invitation,
        lambda user: {"$or": [linked("account")(user), linked("by")(user)]},
        fields("email", "created_at", "accepted_at", "withdrawn_at", "expires_at"),
        erase_with=_erase_invitation,
    ),
    Holding(Event, _events, _event, erase_with=_blank_events),
]
# What somebody has typed wrong is counted under digests, for some minutes.
IMPERSONAL: list[type[Document]] = [
    *(Role, Guard, Allowance, Guesses, Cost, Answered, Worker, Barrier),
]


async def export(user: User) -> AsyncIterator[str]:
    """All that is held about the person as one JSON object, a piece at a time."""
    roles = [role.name for role in await Role.everyone() if user.holds(role)]
    document = await User.get_motor_collection().find_one({"_id": user.id}) or {}
    factors = sorted(NAMES[kind] for kind in user.factors)
    account = fields(*ACCOUNT)(document, user) | {"roles": roles, "second_factors": factors}
    yield f'{{\n"account": {_json(account)}'
    for holding in HELD:
        yield f',\n"{holding.name}": ['
        comma = "\n"
        async for row in holding.rows(user):
            yield comma + _json(row)
            comma = ",\n"
        yield "\n]"
    yield "\n}\n"


async def note_export(user: User, *, by: Actor) -> None:
    """Writes down that somebody takes it away. Raises SessionOver."""

    async def work(tx: Tx) -> None:
        await Event.record(Verb.DATA_EXPORTED, by=by, subject=user.id, tx=tx)

    await acting(by, work)


async def forget_name(username: str) -> None:
    """Others were told who did something to them; from now on it was somebody who has left."""
    async for ids in _batches(Notice, {"data.by": username}):
        await Notice.change_all({"_id": {"$in": ids}}, {"$set": {"data.by": NOBODY_NOW}})


async def sweep(user: User, tx: Tx) -> None:
    """What has come since the collections were erased, in the transaction that ends it."""
    for holding in HELD:
        if holding.erase_with is None:
            await holding.document.get_motor_collection().delete_many(
                holding.find(user), session=tx
            )


async def _batches(
    document: type[Document], match: Mapping[str, Any]
) -> AsyncIterator[list[PydanticObjectId]]:
    """The ids of all documents that match, a batch at a time: no write takes long."""
    collection, last = document.get_motor_collection(), None
    while True:
        behind = {"$and": [match, {"_id": {"$gt": last}}]} if last else match
        found = await collection.find(behind, {"_id": 1}).sort("_id", 1).to_list(BATCH)
        if not found:
            return
        ids = [row["_id"] for row in found]
        yield ids
        last = ids[-1]


def _json(thing: Any) -> str:
    return json.dumps(thing, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value.id if isinstance(value, DBRef) else value)
