"""The sentence for a user who has given the right password, but whose account is not active."""

from quartapp.activities import ACCOUNT_DISABLED
from quartapp.i18n import lazy_gettext as _
from quartapp.i18n.times import format_time
from quartapp.models.accounts.user import User
from quartapp.models.audit import activity


async def message_for(user: User) -> str:
    """Return a sentence that tells a user why they may not sign in.

    It says that the account will be deleted and when, that it is deactivated, that it has expired
    and when, or that an administrator disabled it. For a disabled account, reads the date of a past
    expiry from the audit log.
    """
    if user.deletes_at is not None:
        return _("Your account will be deleted on %(time)s.", time=format_time(user.deletes_at))
    if not user.disabled:
        return _("Your account is deactivated.")
    if day := user.expires_on or await _expired_on(user):
        return _("Your account expired at the end of %(day)s (UTC).", day=day)
    return _("An administrator disabled your account.")


async def _expired_on(user: User) -> str | None:
    """Return the date on which the account expired, if that is why it is disabled, else None."""
    event = await activity.latest(user.id, ACCOUNT_DISABLED)
    return event.details.get("last_day") if event and event.automatic else None
