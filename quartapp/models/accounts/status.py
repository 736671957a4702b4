"""Whether an account is active: the predicate for a document, and the filter for a query.

Administrators disable an account, or it expires, which counts as disabled. Its owner deactivates
it, or somebody schedules its deletion: then `closed_at` is set. The sessions of an account that is
not active do not count. `user` is a stored document, or the fields of a `User`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from quartapp import clock

NEVER = datetime.max.replace(tzinfo=UTC)


def is_active(user: Mapping[str, Any], now: datetime) -> bool:
    """Return whether the account is neither disabled, nor expired, nor deactivated."""
    return not is_disabled(user, now) and user.get("closed_at") is None


def is_disabled(user: Mapping[str, Any], now: datetime) -> bool:
    """Return whether administrators disabled the account, or it expired."""
    return user.get("disabled_at") is not None or has_expired(user, now)


def has_expired(user: Mapping[str, Any], now: datetime) -> bool:
    """Return whether the account has an expiry date that is over, and was not recorded yet.

    The job that records it sets `disabled_at` instead.
    """
    return expires_at(user) <= now


def expires_at(user: Mapping[str, Any]) -> datetime:
    """Return when the account expires; NEVER for one without an expiry date."""
    moment = user.get("closes_at")
    return NEVER if moment is None else clock.as_utc(moment)


def active_filter(now: datetime) -> dict[str, Any]:
    """Return the filter for accounts that are active."""
    expiry = {"$or": [{"closes_at": None}, {"closes_at": {"$gt": now}}]}
    return {"disabled_at": None, "closed_at": None, **expiry}


def expired_filter(now: datetime) -> dict[str, Any]:
    """Return the filter for accounts that `has_expired` is true for."""
    return {"closes_at": {"$lte": now}}
