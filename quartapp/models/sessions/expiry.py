"""When a session expires: the deadline of one session, and the filters for queries.

A session expires at the end of its lifetime, or when it has not been used for its idle time.
"""

from datetime import datetime, timedelta
from typing import Any

from quartapp import clock


def deadline(expires_at: datetime, seen_at: datetime, idle_seconds: float) -> datetime:
    """Return the time at which the session expires if it is not used again: the end of its lifetime
    or, if earlier, of its idle time."""
    idle_until = clock.as_utc(seen_at) + timedelta(seconds=idle_seconds)
    return min(clock.as_utc(expires_at), idle_until)


def active_filter(now: datetime) -> dict[str, Any]:
    """Return the filter for sessions that have neither ended nor expired."""
    return {"ended_at": None, "expires_at": {"$gt": now}, "$expr": _is_in_use(now)}


def is_active(now: datetime) -> dict[str, Any]:
    """Return `active_filter` as an expression, for the stages of an aggregation that compute."""
    not_ended = {"$eq": [{"$ifNull": ["$ended_at", None]}, None]}
    return {"$and": [not_ended, {"$gt": ["$expires_at", now]}, _is_in_use(now)]}


def _is_in_use(now: datetime) -> dict[str, Any]:
    """Return the expression for sessions whose idle time is not over."""
    return {"$gt": [{"$add": ["$seen_at", {"$multiply": ["$idle_seconds", 1000]}]}, now]}
