"""Signatures of the session cookies: that of Quart-Auth and that of Quart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

from itsdangerous import URLSafeTimedSerializer
from quart import Quart, Response
from quart.sessions import SecureCookieSessionInterface, SessionMixin
from werkzeug.wrappers import Response as WerkzeugResponse

# Characters of a cookie's value. Browsers drop a cookie of more than 4,096 bytes.
MAX_COOKIE_LENGTH = 3500
# Where Quart's session keeps the messages for the next page.
_FLASHES = "_flashes"


class CookieSerializer(URLSafeTimedSerializer):
    """Signs the values of cookies. Ignores the age of a signature.

    The database decides when a session expires. Itsdangerous would refuse a cookie that a host
    signed whose clock is ahead of this one's.
    """

    def loads(self, s: Any, max_age: int | None = None, *args: Any, **options: Any) -> Any:
        """Return the signed value; `max_age` is ignored.

        Raises `itsdangerous.BadSignature` if no key fits.
        """
        return super().loads(s, None, *args, **options)


@cache
def _cached_serializer(
    keys: tuple[str, ...], salt: str, serializer: Any = None
) -> CookieSerializer:
    """Return a serializer that signs with HMAC-SHA-512.

    Cached, because Quart and Quart-Auth ask for theirs in each request.
    """
    return CookieSerializer(keys, salt, serializer, signer_kwargs={"digest_method": hashlib.sha512})


def serializer_class(keys: str | Iterable[str], salt: str) -> CookieSerializer:
    """Return a serializer that signs with the last key and accepts all of them. A single text is
    one key. For Quart-Auth, which calls it in each request."""
    return _cached_serializer((keys,) if isinstance(keys, str) else tuple(keys), salt)


class CookieSessionInterface(SecureCookieSessionInterface):
    """Quart's cookie session, signed by `CookieSerializer` and bounded in length."""

    def get_signing_serializer(self, app: Quart) -> URLSafeTimedSerializer | None:
        """Return a serializer that signs with SECRET_KEY and accepts SECRET_KEY_FALLBACKS too."""
        # Itsdangerous signs with the last key.
        keys = (*app.config["SECRET_KEY_FALLBACKS"], str(app.secret_key))
        return _cached_serializer(keys, self.salt, self.serializer)

    async def save_session(
        self, app: Quart, session: SessionMixin, response: Response | WerkzeugResponse | None
    ) -> None:
        """Set the session cookie on the response if the session was modified, as Quart does, or
        delete it if it is empty then.

        If the session was modified and its cookie is longer than MAX_COOKIE_LENGTH, first drops
        flashed messages that no page has shown yet, the oldest first, until it is short enough or
        has no messages left (ASVS 3.3.5).
        """
        if session.modified:
            while session.get(_FLASHES) and len(self._signed(app, session)) > MAX_COOKIE_LENGTH:
                session[_FLASHES] = session[_FLASHES][1:]
        await super().save_session(app, session, response)

    def _signed(self, app: Quart, session: SessionMixin) -> str:
        """Return the session as the signed value of its cookie."""
        serializer = self.get_signing_serializer(app)
        assert serializer is not None, "the application has a secret key"
        return cast(str, serializer.dumps(dict(session)))
