"""The SHA-256 of an entry of the audit log, which the seals contain.

Values that may have to be erased are not hashed themselves. The entry has a commitment for each of
them, SHA-256(salt || value), and the hash of the entry covers the commitments. Erasing deletes the
value and its salt. Without the salt, the value cannot be guessed from the commitment.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import bson
from bson import Binary, CodecOptions, DBRef, ObjectId

from quartapp.activities import A_POST

# The details of an entry that are not personal data. All others are committed to.
LASTING = ("role", "roles", "reason", "count", "until", "expired", "posts", "erased")
# Fields that are not part of the hash: salts are checked with the commitments, and earlier versions
# stored the receipts in the entry.
UNHASHED = ("salts", "erased_for", "receipts", "counted_tabs", "silent_worker")
# What reading a document raises that another program has written with values of other types.
MALFORMED = (AttributeError, KeyError, TypeError, ValueError)

Document = Mapping[str, Any]
# The path of a value in an entry: ("ip",) or ("details", name).
Path = tuple[str, ...]
_STORED: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)


def commitment_fields(entry: Document) -> dict[str, Any]:
    """Return the fields `salts` and `commitments` for an entry that has neither. Does not change
    the entry, and returns others at each call.

    There is a salt of 16 random bytes and a commitment for the IP address and for each detail that
    is not in LASTING, unless it is None.
    """
    stored = as_stored(entry)
    salts: dict[str, Any] = {}
    commitments: dict[str, Any] = {}
    for path in _erasable(stored):
        salt = secrets.token_bytes(16)
        _put(salts, path, Binary(salt))
        _put(commitments, path, Binary(commitment(salt, value_at(stored, path))))
    return {"salts": salts, "commitments": commitments}


def commitment(salt: bytes, value: Any) -> bytes:
    """Return SHA-256(salt || value), the value as canonical JSON."""
    return hashlib.sha256(salt + canonical(value)).digest()


def hash_of(entry: Document) -> bytes:
    """Return the SHA-256 of an entry with commitments, as the database stores or returns it.

    Covers all fields but UNHASHED; of the values that are committed to, only the commitments.
    """
    stored = as_stored(entry)
    commitments = stored.get("commitments", {})
    hashed = {name: value for name, value in stored.items() if name not in UNHASHED}
    if "ip" in commitments:
        hashed.pop("ip", None)
    committed = commitments.get("details", {})
    details = stored.get("details", {})
    hashed["details"] = {name: value for name, value in details.items() if name not in committed}
    return hashlib.sha256(canonical(hashed)).digest()


def committed_paths(entry: Document) -> Iterator[Path]:
    """Yield the paths of the values that the entry commits to."""
    for name, value in entry.get("commitments", {}).items():
        if isinstance(value, Mapping):
            yield from ((name, inner) for inner in value)
        else:
            yield (name,)


def is_erased(entry: Document, path: Path) -> bool:
    """Return whether the value was erased: it has no salt, and is absent or a placeholder."""
    placeholders = (None, A_POST)
    return value_at(entry.get("salts", {}), path) is None and value_at(entry, path) in placeholders


def is_as_committed(entry: Document, path: Path) -> bool:
    """Return whether the value is the one that the entry commits to; False without its salt."""
    salt, expected = value_at(entry.get("salts", {}), path), value_at(entry["commitments"], path)
    return isinstance(salt, bytes) and commitment(salt, value_at(entry, path)) == expected


def as_stored(entry: Document) -> dict[str, Any]:
    """Return the entry as the database returns it: for example, times without microseconds."""
    return bson.decode(bson.encode(entry), _STORED)


def canonical(value: Any) -> bytes:
    """Return the value as JSON with sorted keys and without white space, in UTF-8.

    Values that JSON does not have are objects with one key, such as {"$oid": ...}.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_tagged
    )
    return text.encode()


def _tagged(value: Any) -> dict[str, Any]:
    """Return a value that JSON does not have as an object with one key, which names its type."""
    if isinstance(value, ObjectId):
        return {"$oid": str(value)}
    if isinstance(value, datetime):
        return {"$date": round(value.timestamp() * 1000)}
    if isinstance(value, bytes):
        return {"$binary": value.hex()}
    if isinstance(value, DBRef):
        return {"$ref": value.collection, "$id": value.id}
    return {f"${type(value).__name__}": str(value)}


def _erasable(entry: Document) -> Iterator[Path]:
    """Yield the paths of the values that `commitment_fields` commits to."""
    if entry.get("ip") is not None:
        yield ("ip",)
    for name, value in entry.get("details", {}).items():
        if name not in LASTING and value is not None:
            yield ("details", name)


def value_at(document: Document, path: Path) -> Any:
    """Return the value at the path, or None."""
    value: Any = document
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _put(document: dict[str, Any], path: Path, value: Any) -> None:
    for name in path[:-1]:
        document = document.setdefault(name, {})
    document[path[-1]] = value
