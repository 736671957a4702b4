"""The kinds of second factors, and functions on stored documents that tell which a user has."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from quartapp.i18n import lazy_gettext as _


class Factor(StrEnum):
    """The kind of second factor with which a session was opened. A passkey replaces the password
    too.
    """

    TOTP = "totp"
    RECOVERY_CODE = "recovery_code"
    PASSKEY = "passkey"


NAMES = {
    Factor.TOTP: _("authenticator app"),
    Factor.RECOVERY_CODE: _("recovery code"),
    Factor.PASSKEY: _("passkey"),
}


def described(stored: str) -> str:
    """Return a factor as texts name it, such as `passkey “Phone”`, in the current language.

    `stored` is what `stored_words` has returned; earlier versions stored the English words, which
    are returned as they are.
    """
    kind, space, name = stored.partition(" ")
    return f"{NAMES[Factor(kind)]}{space}{name}" if kind in set(Factor) else stored


def stored_words(kind: Factor, name: str | None) -> str:
    """Return what is stored of a factor for the texts that name it: its kind, and its name in
    quotation marks if it has one."""
    return f"{kind.value} “{name}”" if name else kind.value


class Totp(BaseModel):
    """An authenticator app. `sealed` is its secret, encrypted with a key that the database does not
    have.
    """

    sealed: str = Field(repr=False)
    added_at: datetime


# The field of the user document that stores each kind, and its value without one. Recovery codes
# are not listed: they only replace another factor, and are deleted with the last of them.
KEPT: dict[Factor, tuple[str, Any]] = {
    Factor.TOTP: ("totp", None),
    Factor.PASSKEY: ("passkeys", []),
}


def factors_of(user: Mapping[str, Any]) -> frozenset[Factor]:
    """Return which kinds the user document has. Recovery codes alone are none."""
    return frozenset(kind for kind, (field, _) in KEPT.items() if user.get(field))


def has_shown_one(session: Mapping[str, Any], user: Mapping[str, Any]) -> bool:
    """Return whether the session was opened with a second factor, and its user still has one."""
    return session.get("factor") is not None and bool(factors_of(user))


def waits_for_one(role: Mapping[str, Any], *, shown: bool) -> bool:
    """Return whether the role requires a second factor that was not `shown`, so that it allows
    nothing.
    """
    return bool(role.get("requires_factor")) and not shown
