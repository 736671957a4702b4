"""What is said on the socket: JSON text frames, each with a `type`."""

import json
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, ClassVar

LONGEST = 4096
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Close(IntEnum):
    """Why the server closes. ENDED is final; on the others a client comes back, with jitter."""

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
class Ping:
    TYPE: ClassVar = "ping"
    at: str


Message = Hello | PermissionsChanged | SessionStarted | SessionEnded | NoticeSent | Ping


class BadMessage(Exception):
    """A client said something that is no pong and no acknowledgement, or said too much."""


def encode(message: Message) -> str:
    fields = {name: getattr(message, name) for name in message.__slots__}
    return _encode({"type": message.TYPE, **fields})


def acknowledged(frame: str | bytes | None) -> str | None:
    """The id that a client acknowledges; None for its other answer, a pong. Raises BadMessage."""
    if not isinstance(frame, str) or len(frame.encode("utf-8", "replace")) > LONGEST:
        raise BadMessage
    try:
        said: Any = json.loads(frame)
    except (ValueError, RecursionError):
        raise BadMessage from None
    match said:
        case {"type": "pong"}:
            return None
        case {"type": "ack", "id": str(message_id)}:
            return message_id
    raise BadMessage


def timestamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
