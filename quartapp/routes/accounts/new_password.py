"""The check of a new password, for all pages that set one."""

from quartapp.auth import rate_limits, remote_address
from quartapp.forms.base import Form
from quartapp.runtime import password_policy, settings


async def count_registration(_form: Form) -> None:
    """Count an attempt to create an account from this network, as the first check of its form:
    before the password is scored and names are looked up. Raises RateLimitExceeded."""
    here = rate_limits.network_of(remote_address())
    await rate_limits.count("registration", (here, settings().limit_registration))


async def check_new_password(form: Form, *context: str) -> None:
    """Add an error to the form if the policy refuses its `password`, unless the field already has
    one.

    `context` has words that are known about the user, such as the username. May ask the service for
    breached passwords. Raises Busy. Scoring the password is costly, so routes count the attempt
    before they call this.
    """
    if form["password"].errors:
        return
    weakness = await password_policy().weakness(form["password"].data or "", context=context)
    if weakness:
        form.refuse(weakness, "password")
