"""Whether a new password is accepted: the same for every page that sets one."""

from quartapp import throttle
from quartapp.auth import password_policy, remote_address, settings
from quartapp.forms.base import Form


async def count_registration() -> None:
    """Count a try to create an account from this address. Raises TooMany."""
    here = throttle.neighbourhood(remote_address())
    await throttle.count("registration", (here, settings().limit_registration))


async def is_accepted(form: Form, *context: str) -> bool:
    """Return whether the policy accepts the form's `password`; if not, the field says why.

    The context are words that are known of the user. Raises Busy. Scoring is costly, so a route
    counts its limits before it calls this.
    """
    weakness = await password_policy().weakness(form["password"].data or "", context=context)
    if weakness:
        form.refuse(weakness, "password")
    return weakness is None
