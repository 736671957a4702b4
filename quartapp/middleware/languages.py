"""ASGI middleware that chooses the language of a response by `Accept-Language`."""

from __future__ import annotations

from typing import Any

from quartapp import i18n
from quartapp.settings import Settings


class Languages:
    """Sets the current language of requests and handshakes to the one that the client prefers.

    `auth.load_current_user` then sets the one that a signed-in user has chosen, if any. Refusals of
    the other middleware are in the client's language too, so this is outside of them. Only
    development offers the pseudo-locale.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._pseudo = not settings.production

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the application, for HTTP and sockets with the preferred language or the default."""
        if scope["type"] in ("http", "websocket"):
            with i18n.use_locale(i18n.negotiate(_accepted(scope), self._pseudo)):
                return await self._app(scope, receive, send)
        return await self._app(scope, receive, send)


def _accepted(scope: Any) -> str:
    """Return the values of all Accept-Language headers, or an empty text without one."""
    values = [value for name, value in scope["headers"] if name == b"accept-language"]
    return b",".join(values).decode("latin-1")
