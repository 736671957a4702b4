"""Why an account cannot be signed in to, as its owner is told after the right password."""

from quartapp import clock
from quartapp.activities import ACCOUNT_DISABLED
from quartapp.models.accounts.user import User
from quartapp.models.audit import activity


async def why(user: User) -> str:
    """Return what happened to a user who may not enter (`User.may_enter`), as a sentence."""
    if user.deletes_at is not None:
        return f"Your account will be deleted on {clock.format_long(user.deletes_at)}."
    if not user.disabled:
        return "Your account is deactivated."
    if day := user.expires_on or await _expired_on(user):
        return f"Your account expired at the end of {day} (UTC)."
    return "An administrator disabled your account."


async def _expired_on(user: User) -> str | None:
    """The date, if that is why the account is disabled: only the audit log still has it."""
    event = await activity.latest(user.id, ACCOUNT_DISABLED)
    return event.details.get("last_day") if event and event.automatic else None
