"""The check of a new password, for all pages that set one."""

from quartapp.auth import rate_limits, remote_address
from quartapp.forms.base import Form
from quartapp.runtime import password_policy, settings


async def count_registration() -> None:
    """Count an attempt to create an account from this network. Raises RateLimitExceeded."""
    here = rate_limits.network_of(remote_address())
    await rate_limits.count("registration", (here, settings().limit_registration))


async def is_accepted(form: Form, *context: str) -> bool:
    """Return whether the policy accepts the form's `password`. If not, the field gets the error,
    unless it already has one.

    `context` has words that are known about the user, such as the username. May ask the service for
    breached passwords. Raises Busy. Scoring the password is costly, so routes count the attempt
    before they call this.
    """
    if form["password"].errors:
        return False
    weakness = await password_policy().weakness(form["password"].data or "", context=context)
    if weakness:
        form.refuse(weakness, "password")
    return weakness is None
