"""The relying party: the domain name for which passkeys are valid (WebAuthn)."""

from urllib.parse import urlsplit

from quart import request

from quartapp.forms import csrf
from quartapp.runtime import settings
from quartapp.security.webauthn import Asker, Site
from quartapp.settings import LOOPBACK


def site() -> Site | None:
    """Return the relying party of BASE_URL; in development also of localhost.

    None if BASE_URL has no domain name, so that passkeys do not work. In production the Host
    header is not used, because clients choose it.
    """
    if not settings().production and _host() == "localhost":
        return Site.at(f"{request.scheme}://{request.host}")
    return Site.at(settings().base_url, settings().allowed_origins)


def elsewhere() -> str | None:
    """Return the URL of this page at localhost, in development at an IP address; else None."""
    if settings().production or site() or _host() not in LOOPBACK:
        return None
    port = urlsplit(f"//{request.host}").port
    return (
        f"{request.scheme}://localhost{f':{port}' if port else ''}{request.full_path.rstrip('?')}"
    )


def asker(what: str) -> Asker:
    """Return what creates challenges for `what`, bound to the session or visitor."""
    return Asker(settings().secret_key.get_secret_value(), f"{what} {csrf.bound_to()}")


def _host() -> str:
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""
