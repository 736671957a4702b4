"""Topics: what an open page can follow, as data.

A page names the topics in the attribute `data-topics` of the elements that show them, and its
socket in the query of the handshake. When a topic changes, the socket is told the name of the topic
and nothing else; the page then fetches itself, with all checks of a page. See
docs/adr/0096-live-regions.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from beanie import PydanticObjectId

from quartapp.authority.change_stream import changed_fields
from quartapp.models import (
    Event,
    EventReceipts,
    Invitation,
    Mail,
    Role,
    RoleDeletion,
    Session,
    User,
    Worker,
)
from quartapp.models.statistics.hourly_count import HourlyCount
from quartapp.policy import MANAGEMENT_PERMISSIONS, Permission

Id = PydanticObjectId

# What a handshake may name; the rest is ignored.
MAX_TOPICS = 20
MAX_LENGTH = 64
_OWN_ID = "_id"


class Audience(Enum):
    """Who may follow a topic."""

    # Users with one of its permissions.
    PERMITTED = auto()
    # Every user, who is told of the changes of their own documents only.
    OWNER = auto()
    # Every user who knows the id of a document: `name.<id>` follows this document.
    KNOWS_ID = auto()


@dataclass(frozen=True, slots=True)
class Source:
    """The changes of a collection that belong to a topic.

    An update of only `ignored` fields does not. For topics of the audience OWNER, `owner` is the
    field of a new document that links its user, or "_id" if the document is the user.
    """

    collection: str
    ignored: frozenset[str] = frozenset()
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Topic:
    """A name under which pages follow changes, and who may."""

    name: str
    sources: tuple[Source, ...]
    permissions: frozenset[Permission] = frozenset()
    audience: Audience = Audience.PERMITTED


@dataclass(frozen=True, slots=True)
class Key:
    """What one subscription follows: a topic, or the part of it that belongs to one id."""

    topic: str
    id: Any = None


TOPICS: dict[str, Topic] = {}


def register(topic: Topic) -> Topic:
    """Add a topic, before the application starts, and return it.

    Raises ValueError if the name exists or has a comma, a space or a dot, and if permissions are
    missing for the audience PERMITTED or given for another.
    """
    if topic.name in TOPICS or not topic.name.replace("-", "").isalnum():
        raise ValueError(f"topic {topic.name!r} exists or has an invalid name")
    if bool(topic.permissions) != (topic.audience is Audience.PERMITTED):
        raise ValueError(f"topic {topic.name!r}: only the audience PERMITTED needs permissions")
    return TOPICS.setdefault(topic.name, topic)


def parse(text: str, user_id: Id) -> dict[Key, str]:
    """Return what the comma-separated names in a handshake follow, with the name as it was given.

    Ignores unknown names, names longer than MAX_LENGTH, and all behind the first MAX_TOPICS; and a
    name without an id for KNOWS_ID, or with one for another audience. Of an OWNER topic, the user
    follows their own part. Checks no permission: `may_follow` does when a change is announced.
    """
    found: dict[Key, str] = {}
    for name in text.split(",", MAX_TOPICS)[:MAX_TOPICS]:
        stem, _, document = name.partition(".")
        topic = TOPICS.get(stem)
        if topic is None or len(name) > MAX_LENGTH:
            continue
        if topic.audience is Audience.KNOWS_ID:
            if Id.is_valid(document):
                found[Key(stem, Id(document))] = name
        elif not document:
            found[Key(stem, user_id if topic.audience is Audience.OWNER else None)] = name
    return found


def may_follow(name: str, permissions: Collection[str]) -> bool:
    """Return whether a user with these permissions may be told about the topic of this name, which
    may have the id of a document behind it. Raises KeyError for an unknown one."""
    topic = TOPICS[name.partition(".")[0]]
    return topic.audience is not Audience.PERMITTED or any(
        permission in permissions for permission in topic.permissions
    )


def keys_of(event: Mapping[str, Any]) -> Iterable[Key]:
    """Yield what an event of the stream (see `pipeline`) changes: a topic or, for KNOWS_ID and
    OWNER, its part that belongs to the document or the owner.

    Nothing for an update of only ignored fields, and for OWNER nothing if the event lacks the link
    to the owner, as most updates and deletes do. Raises KeyError, TypeError or AttributeError for
    an event that is no change of a document.
    """
    for topic in TOPICS.values():
        for source in topic.sources:
            if source.collection != event["ns"]["coll"]:
                continue
            if (changed := event.get("changed")) and source.ignored.issuperset(changed):
                continue
            if topic.audience is Audience.PERMITTED:
                yield Key(topic.name)
            elif topic.audience is Audience.KNOWS_ID or source.owner == _OWN_ID:
                yield Key(topic.name, event["documentKey"]["_id"])
            elif link := (event.get("fullDocument") or {}).get(source.owner):
                yield Key(topic.name, link.id)


def pipeline() -> list[dict[str, Any]]:
    """Return the pipeline of a change stream with the changes that belong to some topic.

    Of a document it keeps only the link to the owner, and of an update only the names of the
    changed fields, in `changed`.
    """
    sources = [source for topic in TOPICS.values() for source in topic.sources]
    ignored: dict[str, frozenset[str]] = {}
    for source in sources:
        ignored[source.collection] = source.ignored & ignored.get(source.collection, source.ignored)
    owners = {source.owner for source in sources} - {"", _OWN_ID}
    return [
        {"$match": {"ns.coll": {"$in": list(ignored)}}},
        {"$set": {"changed": changed_fields()}},
        {
            "$match": {
                "$or": [
                    {
                        "ns.coll": collection,
                        "$or": [
                            {"operationType": {"$ne": "update"}},
                            {"changed": {"$elemMatch": {"$nin": sorted(fields)}}},
                        ],
                    }
                    for collection, fields in ignored.items()
                ]
            }
        },
        {
            "$project": {
                "operationType": 1,
                "ns": 1,
                "documentKey": 1,
                "changed": 1,
                **{f"fullDocument.{owner}": 1 for owner in sorted(owners)},
            }
        },
    ]


def _ignoring(*fields: str) -> frozenset[str]:
    return frozenset(fields)


_USERS = Source(
    User.Settings.name,
    ignored=_ignoring(
        *("notice_seq", "notices_read", "notices_read_early", "totp_step", "recovery_codes"),
        *("acts", "seen_at"),
    ),
)
_SESSIONS = Source(
    Session.Settings.name,
    ignored=_ignoring(
        *("digest", "ip", "seen_at", "uses", "online_until", "page", "worker", "roles", "acts")
    ),
)
# Workers write these fields with each heartbeat. Pages follow which workers there are.
_WORKERS = Source(
    Worker.Settings.name, ignored=_ignoring("name", "beat", "at", "primary", "sockets", "lag")
)
_EVENTS = Event.Settings.name

for _topic in (
    Topic("users", (_USERS,), frozenset({Permission.USERS_READ})),
    Topic(
        "roles",
        (Source(Role.Settings.name, _ignoring("acts")), Source(RoleDeletion.Settings.name)),
        frozenset({Permission.ROLES_MANAGE, Permission.USERS_READ}),
    ),
    Topic("sessions", (_SESSIONS,), frozenset({Permission.SESSIONS_MANAGE, Permission.USERS_READ})),
    Topic(
        "events",
        (Source(_EVENTS), Source(EventReceipts.Settings.name)),
        frozenset({Permission.EVENTS_READ}),
    ),
    Topic("requests", (Source("role_requests"),), frozenset({Permission.USERS_MANAGE})),
    Topic("invitations", (Source(Invitation.Settings.name),), frozenset({Permission.USERS_MANAGE})),
    Topic("workers", (_WORKERS,), MANAGEMENT_PERMISSIONS),
    Topic("statistics", (Source(HourlyCount.Settings.name),), frozenset({Permission.USERS_READ})),
    Topic("mail", (Source(Mail.Settings.name),), MANAGEMENT_PERMISSIONS),
    # The user's own account: the document, and what the audit log records about the user, such as a
    # sign-in, the end of a session, a grant or the answer to a request.
    Topic(
        "account",
        (Source(_EVENTS, owner="subject"), Source(User.Settings.name, _USERS.ignored, _OWN_ID)),
        audience=Audience.OWNER,
    ),
    # `receipts.<event>`: the tabs that have acknowledged the end of their session.
    Topic("receipts", (Source(EventReceipts.Settings.name),), audience=Audience.KNOWS_ID),
):
    register(_topic)
