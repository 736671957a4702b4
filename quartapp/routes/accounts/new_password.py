"""Whether a new password is accepted: the same for every page that sets one."""

from quartapp.auth import rate_limits, remote_address
from quartapp.forms.base import Form
from quartapp.runtime import password_policy, settings


async def count_registration() -> None:
    """Count a try to create an account from this address. Raises RateLimitExceeded."""
    here = rate_limits.network_of(remote_address())
    await rate_limits.count("registration", (here, settings().limit_registration))


async def is_accepted(form: Form, *context: str) -> bool:
    """Return whether the policy accepts the form's `password`; if not, the field says why.

    The context are words that are known of the user. Raises Busy. Scoring is costly, so a route
    counts its limits before it calls this.
    """
    weakness = await password_policy().weakness(form["password"].data or "", context=context)
    if weakness:
        form.refuse(weakness, "password")
    return weakness is None
