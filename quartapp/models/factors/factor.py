"""Second factors: which kinds there are, who has one, and what waits for one. Pure."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field


class Factor(StrEnum):
    """What was shown beside the password, or in its place."""

    TOTP = "totp"
    RECOVERY_CODE = "recovery_code"
    PASSKEY = "passkey"


NAMES = {
    Factor.TOTP: "authenticator app",
    Factor.RECOVERY_CODE: "recovery code",
    Factor.PASSKEY: "passkey",
}


class Totp(BaseModel):
    """An authenticator app. What it shares with us is sealed: the database alone tells no codes."""

    sealed: str = Field(repr=False)
    added_at: datetime


# Where a user's document keeps each kind that can be set up, and what stands there without it.
# Recovery codes are none: they stand in for the others, and go with the last of them.
KEPT: dict[Factor, tuple[str, Any]] = {
    Factor.TOTP: ("totp", None),
    Factor.PASSKEY: ("passkeys", []),
}


def factors_of(user: Mapping[str, Any]) -> frozenset[Factor]:
    """Which kinds the user has, as their document says."""
    return frozenset(kind for kind, (field, _) in KEPT.items() if user.get(field))


def has_shown_one(session: Mapping[str, Any], user: Mapping[str, Any]) -> bool:
    """Whether the session was opened with a second factor by somebody who still has one."""
    return session.get("factor") is not None and bool(factors_of(user))


def waits_for_one(role: Mapping[str, Any], *, shown: bool) -> bool:
    """Whether the role gives nothing until a second factor is shown."""
    return bool(role.get("requires_factor")) and not shown
