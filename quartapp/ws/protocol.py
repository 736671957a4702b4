"""The messages of the live protocol: JSON text frames, each with a `type`."""

import json
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, ClassVar

MAX_MESSAGE_BYTES = 4096
_encode = json.JSONEncoder(separators=(",", ":")).encode


class CloseCode(IntEnum):
    """Close codes of the server.

    After ENDED the client does not reconnect; after the others it does, at a random time.
    """

    FAILED = 1011
    RESTART = 1012
    OVERLOADED = 1013
    BAD_MESSAGE = 4400
    ENDED = 4401
    TOO_SLOW = 4408


@dataclass(frozen=True, slots=True)
class Hello:
    TYPE: ClassVar = "hello"
    session: str
    user: dict[str, str]
    roles: list[str]
    permissions: list[str]
    version: int
    cursor: str
    worker: str


@dataclass(frozen=True, slots=True)
class PermissionsChanged:
    TYPE: ClassVar = "permissions.changed"
    id: str
    version: int
    roles: list[str]
    permissions: list[str]
    added: list[str]
    removed: list[str]
    by: str | None


@dataclass(frozen=True, slots=True)
class SessionStarted:
    TYPE: ClassVar = "session.started"
    id: str
    session: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class SessionEnded:
    TYPE: ClassVar = "session.ended"
    id: str
    reason: str
    by: str | None
    at: str
    message: str


@dataclass(frozen=True, slots=True)
class NoticeSent:
    TYPE: ClassVar = "notice"
    id: str
    kind: str
    text: str
    at: str


@dataclass(frozen=True, slots=True)
class NoticesRead:
    TYPE: ClassVar = "notices.read"
    id: str
    unread: int
    cursor: str


@dataclass(frozen=True, slots=True)
class TopicsChanged:
    TYPE: ClassVar = "topics.changed"
    id: str
    topics: list[str]


@dataclass(frozen=True, slots=True)
class Ping:
    TYPE: ClassVar = "ping"
    at: str


Message = (
    Hello
    | PermissionsChanged
    | SessionStarted
    | SessionEnded
    | NoticeSent
    | NoticesRead
    | TopicsChanged
    | Ping
)


class InvalidMessage(Exception):
    """A client sent something that is neither a pong nor an acknowledgement, or is too long."""


def encode(message: Message) -> str:
    """Return the message as compact JSON, with its `type`."""
    fields = {name: getattr(message, name) for name in message.__slots__}
    return _encode({"type": message.TYPE, **fields})


def parse_client_message(frame: str | bytes | None) -> str | None:
    """Return the id that the client acknowledges, or None for a pong.

    Accepts the JSON texts `{"type": "pong"}` and `{"type": "ack", "id": TEXT}`, and ignores other
    fields. Raises InvalidMessage for everything else: other JSON, text that is no JSON, a binary
    frame (bytes), None, and a text of more than MAX_MESSAGE_BYTES in UTF-8.
    """
    if not isinstance(frame, str) or len(frame.encode("utf-8", "replace")) > MAX_MESSAGE_BYTES:
        raise InvalidMessage
    try:
        message: Any = json.loads(frame)
    except (ValueError, RecursionError):
        raise InvalidMessage from None
    match message:
        case {"type": "pong"}:
            return None
        case {"type": "ack", "id": str(message_id)}:
            return message_id
    raise InvalidMessage


def format_time(moment: datetime) -> str:
    """Return the time in ISO 8601 with milliseconds and its own UTC offset.

    The time is not converted to UTC. A naive time gets no offset.
    """
    return moment.isoformat(timespec="milliseconds")
