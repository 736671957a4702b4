"""The relying party: the domain name for which passkeys are valid (WebAuthn)."""

from urllib.parse import urlsplit

from quart import request

from quartapp.forms import csrf
from quartapp.runtime import settings
from quartapp.security.webauthn import ChallengeSigner, RelyingParty
from quartapp.settings import LOOPBACK


def site() -> RelyingParty | None:
    """Return the relying party for this request: the domain of BASE_URL or, in development,
    localhost.

    None if BASE_URL has no domain name: then passkeys do not work. Production ignores the Host
    header, because clients choose it.
    """
    if not settings().production and _host() == "localhost":
        return RelyingParty.for_origin(f"{request.scheme}://{request.host}")
    return RelyingParty.for_origin(settings().base_url, settings().allowed_origins)


def elsewhere() -> str | None:
    """Return the URL of this page at localhost, where passkeys work. None unless this is
    development and the page was opened at a loopback IP address.
    """
    if settings().production or site() or _host() not in LOOPBACK:
        return None
    port = urlsplit(f"//{request.host}").port
    return (
        f"{request.scheme}://localhost{f':{port}' if port else ''}{request.full_path.rstrip('?')}"
    )


def asker(what: str) -> ChallengeSigner:
    """Return what creates and checks challenges for `what`, bound to this session or visitor."""
    return ChallengeSigner(
        settings().secret_key.get_secret_value(), f"{what} {csrf.token_binding()}"
    )


def _host() -> str:
    """Return the host name of the request without its port; empty if it is not valid."""
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""
