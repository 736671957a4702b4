"""Where passkeys work. They are bound to a name, and no stranger's word for it is taken."""

from urllib.parse import urlsplit

from quart import request

from quartapp.forms import csrf
from quartapp.runtime import settings
from quartapp.security.webauthn import Asker, Site
from quartapp.settings import LOOPBACK


def site() -> Site | None:
    """What BASE_URL says; in development, this machine under its name. None where there are
    none, as with the BASE_URL that is there unset.

    The Host header is what a stranger says, so in production it is not asked.
    """
    if not settings().production and _host() == "localhost":
        return Site.at(f"{request.scheme}://{request.host}")
    return Site.at(settings().base_url, settings().allowed_origins)


def elsewhere() -> str | None:
    """In development, this page where passkeys work, for those who came by an address."""
    if settings().production or site() or _host() not in LOOPBACK:
        return None
    port = urlsplit(f"//{request.host}").port
    return (
        f"{request.scheme}://localhost{f':{port}' if port else ''}{request.full_path.rstrip('?')}"
    )


def asker(what: str) -> Asker:
    """Makes challenges for `what` that only pages of this visit can answer."""
    return Asker(settings().secret_key.get_secret_value(), f"{what} {csrf.bound_to()}")


def _host() -> str:
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""
