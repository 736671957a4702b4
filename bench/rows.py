"""The documents that `bench.population` writes.

For `count` users there are as many sessions, audit entries and notifications, half as many posts
and comments, and a tenth or a hundredth of the rest. One user, BUSY, has a tenth of the entries,
notifications, posts and comments, so that a page of one user is measured with many rows too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from quartapp.activities import (
    ACCOUNT_CREATED,
    COMMENT_REMOVED,
    ROLE_GRANTED,
    SIGNED_IN,
)
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.audit.entry_hash import commitment_fields

Row = dict[str, Any]

MONTH = timedelta(days=30)
HOURS = 32 * 24
# The share of the rows that belong to the user BUSY: one of this many.
BUSY_EACH = 10
BUSY = 0
SHOWN_EVENTS = 90
# The address of all rows. Clients of the bench have another one.
ADDRESS = "192.0.2.1"
CREW = "crew"
NO_PASSWORD = "no password"


def username(number: int) -> str:
    return f"user{number:07}"


def email(number: int) -> str:
    # In another order than the usernames.
    return f"{hashlib.sha256(str(number).encode()).hexdigest()[:10]}@example.org"


def user_id(number: int) -> ObjectId:
    return _id(0, number)


@dataclass(frozen=True)
class Kind:
    """The rows of one collection: their number, and the function that returns the row of a
    number."""

    count: int
    make: Callable[[int], Row]

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Yield the rows of these numbers, or all."""
        return map(self.make, range(start, self.count if stop is None else stop))


def _id(kind: int, number: int) -> ObjectId:
    """Return an id that ascends with the number, like those of documents created one by one."""
    seconds = 1_700_000_000 + number // 100
    return ObjectId(seconds.to_bytes(4) + bytes([kind, number % 100]) + number.to_bytes(6))


def _owner(number: int) -> int:
    """Return the number of the user who owns the row of this number."""
    return BUSY if number % BUSY_EACH == 0 else number


def _ref(collection: str, key: ObjectId) -> Row:
    """Return a reference as it is stored. It is encoded faster than a DBRef."""
    return {"$ref": collection, "$id": key}


def _user_ref(number: int) -> Row:
    return _ref("users", user_id(number))


def collections(
    count: int, now: datetime, roles: Mapping[str, ObjectId], salt: int
) -> dict[str, Kind]:
    """Return the rows of each collection, but for the seals.

    `roles` are ids by name. Databases with another `salt` have other tokens.
    """

    def rows(kind: int, number: int, make: Callable[[int, ObjectId], Row]) -> Kind:
        return Kind(number, lambda i: make(i, _id(kind, i)))

    member, crew = _ref("roles", roles["member"]), _ref("roles", roles[CREW])
    busy = -(-count // BUSY_EACH)
    credential = fingerprint(NO_PASSWORD)
    # Some grants end, in a year.
    ends = {"role": roles[CREW], "until": now + 12 * MONTH, "warn_at": now + 11 * MONTH}

    def ago(i: int, span: timedelta) -> datetime:
        """Return a time within the span before now; the higher the number, the later."""
        return now - span * (1 - i / count)

    def user(i: int, key: ObjectId) -> Row:
        name, address = username(i), email(i)
        return {
            "_id": key,
            "username": name,
            "email": address,
            "canonical_username": name,
            "canonical_email": address,
            "password_hash": NO_PASSWORD,
            "roles": [member, crew] if i % 2 else [member],
            "role_ends": [ends] if i % 50 == 5 else [],
            "authz_version": 1,
            "authz_by": None,
            "common_events": [],
            "disabled_at": now if i % 50 == 1 else None,
            # Some accounts expire, in a year.
            "closes_at": now + 12 * MONTH if i % 50 == 2 else None,
            "closed_at": now if i % 50 == 3 else None,
            "closed_by": None,
            "deletes_at": now + MONTH if i % 50 == 3 else None,
            "deletes_posts": False,
            "erasing_until": None,
            "email_verified_at": None if i % 50 == 4 else now,
            "must_verify": i % 50 == 4,
            "claimed_email": None,
            "canonical_claim": None,
            "pending_email": None,
            "letters_asked": [],
            "created_at": ago(i, 12 * MONTH),
            "password_changed_at": ago(i, 12 * MONTH),
            "notice_seq": busy if i == BUSY else 1,
            "notices_read": 0,
            # A tenth were never seen. The others are in another order than by creation.
            "seen_at": None if i % 10 == 6 else now - MONTH * ((i * 7919 % count) / count),
            "acts": 0,
            "totp": None,
            "totp_step": 0,
            "passkeys": [],
            "recovery_codes": [],
        }

    def session(i: int, key: ObjectId) -> Row:
        """Four of ten have ended, one of them of the busy user; four have expired, one is
        remembered and one was used lately."""
        remembered, recent = i % 10 == 8, i % 10 == 9
        seen = now - timedelta(minutes=10) * (1 - i / count) if recent else ago(i, MONTH)
        idle = timedelta(days=14) if remembered else timedelta(minutes=30)
        opened = seen - timedelta(minutes=5)
        ended = seen if i % 10 < 4 else None
        return {
            "_id": key,
            "digest": hashlib.sha256(f"{salt} {i}".encode()).hexdigest(),
            "user": _user_ref(_owner(i)),
            "device": "Firefox on Linux",
            "browser": hashlib.sha256(str(i).encode()).hexdigest(),
            "ip": ADDRESS,
            "created_at": opened,
            "seen_at": seen,
            "expires_at": opened + (MONTH if remembered else timedelta(hours=8)),
            "idle_seconds": int(idle.total_seconds()),
            "remembered": remembered,
            "factor": None,
            "confirmed_at": opened,
            "credential": credential,
            "roles": [member],
            "uses": 1,
            "acts": 0,
            "online_until": None,
            "ended_at": ended,
            "ended_reason": "signed_out" if ended else None,
            "ended_because": None,
            "ended_by": _user_ref(i) if ended else None,
            "ended_event": None,
        }

    def event(i: int, _: ObjectId) -> Row:
        theirs = _user_ref(_owner(i))
        # The activity page shows only the first events of the busy user, and no later ones.
        shown = i % BUSY_EACH or i < SHOWN_EVENTS * BUSY_EACH
        activity = (SIGNED_IN, ROLE_GRANTED)[i % 2] if shown else COMMENT_REMOVED
        at = ago(i, MONTH)
        row = {
            # The verification compares the time in the id with others.
            "_id": ObjectId(int(at.timestamp()).to_bytes(4) + i.to_bytes(8)),
            "actor": theirs,
            "verb": activity.audit_name,
            "subject": theirs,
            "session": _id(1, i),
            "ip": ADDRESS,
            "at": at,
            "details": {"role": "member"} if activity is ROLE_GRANTED else {"device": "Firefox"},
        }
        return row | commitment_fields(row)

    def notice(i: int, key: ObjectId) -> Row:
        owner = _owner(i)
        return {
            "_id": key,
            "user": _user_ref(owner),
            "seq": i // BUSY_EACH + 1 if owner == BUSY else 1,
            "kind": ACCOUNT_CREATED.notification_kind,
            "data": {"by": username((i + 1) % count)},
            "created_at": ago(i, MONTH),
            "read_at": None,
        }

    def post(i: int, key: ObjectId) -> Row:
        return {
            "_id": key,
            "author": _user_ref(_owner(i)),
            "title": f"Post {i}",
            "body": "Text of a post. " * 12,
            # All posts have two of the words, one of ten the third, and none the last but its own.
            "words": ["post", "text", *(["tenth"] if i % BUSY_EACH == 0 else []), str(i)],
            "created_at": ago(i, MONTH),
            "edited_at": None,
            "comment_count": 1,
        }

    def comment(i: int, key: ObjectId) -> Row:
        return {
            "_id": key,
            "author": _user_ref(_owner(i)),
            # A tenth of all comments is below one post.
            "post": _ref("posts", _id(4, _owner(i))),
            "body": "Text of a comment.",
            "created_at": ago(i, MONTH),
        }

    def invitation(i: int, key: ObjectId) -> Row:
        asked = ago(i, MONTH)
        return {
            "_id": key,
            "email": f"invited{i}@example.org",
            "role": crew,
            "by": _user_ref(_owner(i)),
            "created_at": asked,
            "asked_at": asked,
            "expires_at": now - timedelta(days=60) * (1 - i * 10 / count) + timedelta(days=6),
            "digest": hashlib.sha256(f"i{salt} {i}".encode()).hexdigest(),
            "accepted_at": None,
            "account": None,
            "withdrawn_at": None,
            "withdrawn_by": None,
        }

    def request(i: int, key: ObjectId) -> Row:
        """Half of the requests for roles are open, the other half were declined."""
        decided = i % 2
        return {
            "_id": key,
            "user": _user_ref(_owner(i) if decided else i),
            "role": crew,
            "name": CREW,
            "reason": "A reason.",
            "created_at": ago(i, MONTH),
            "state": "declined" if decided else "open",
            "decided_at": ago(i, MONTH) if decided else None,
            "decided_by": _user_ref(BUSY) if decided else None,
            "answer": "",
            "until": None,
        }

    def token(i: int, key: ObjectId) -> Row:
        return {
            "_id": key,
            "purpose": "confirm",
            "digest": hashlib.sha256(f"t{salt} {i}".encode()).hexdigest(),
            "created_at": now,
            "expires_at": now + timedelta(hours=1),
            "used_at": now if i % 2 else None,
            "user": _user_ref(i),
            "email": email(i),
            "credential": credential,
            "code": None,
            "guesses": 0,
        }

    def mail(i: int, key: ObjectId) -> Row:
        """Emails that were given up: a worker would send others."""
        return {
            "_id": key,
            # The field in which the kind of an email is stored.
            "letter": "session.new",
            "to": email(i),
            "user": _user_ref(i),
            "data": {},
            "created_at": now,
            "due_at": now,
            "tries": 12,
            "trouble": "no answer",
            "gave_up_at": now,
        }

    def passkey(i: int, key: ObjectId) -> Row:
        return {
            "_id": key,
            "user": _user_ref(i),
            "credential_id": f"credential {i}",
            "public_key": b"key",
            "sign_count": 0,
            "name": "Laptop",
            "transports": [],
            "backed_up": False,
            "created_at": now,
            "last_used_at": None,
            "uses": 0,
        }

    def limited(i: int, key: ObjectId) -> Row:
        later = now + timedelta(hours=1)
        return {
            "_id": hashlib.sha256(str(key).encode()).hexdigest(),
            "times": 1,
            "failed": 1,
            "under_way": [],
            "sent": {},
            "until": later,
            "forget_at": later,
            "expires_at": later,
        }

    def hour(i: int, key: ObjectId) -> Row:
        """Numbers for the dashboard: as many as there can be, for any number of users."""
        at = (now - timedelta(hours=i)).replace(minute=0, second=0, microsecond=0)
        numbers = dict.fromkeys(("00", "15", "30", "45"), 1 + i % 50)
        kinds = ("sign_ins", "failures", "accounts")
        return {"_id": at, "at": at, "counts": dict.fromkeys(kinds, numbers)}

    tenth, hundredth = -(-count // 10), -(-count // 100)
    return {
        "users": rows(0, count, user),
        "sessions": rows(1, count, session),
        "events": rows(2, count, event),
        "notices": rows(3, count, notice),
        "posts": rows(4, -(-count // 2), post),
        "comments": rows(5, -(-count // 2), comment),
        "invitations": rows(6, tenth, invitation),
        "tokens": rows(7, tenth, token),
        "outbox": rows(8, hundredth, mail),
        "passkeys": rows(9, hundredth, passkey),
        "mailboxes": rows(10, tenth, limited),
        "allowances": rows(11, tenth, limited),
        "guesses": rows(12, tenth, limited),
        "answered": rows(13, hundredth, limited),
        "role_requests": rows(14, tenth, request),
        "hourly_counts": rows(15, HOURS, hour),
    }
