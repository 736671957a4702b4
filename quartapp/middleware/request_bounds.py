"""Bounds on what a request may make the worker do before its route is known.

A body is at most 64 KB, but its parsing takes time for each field, not for each byte: a form of
32,000 empty fields held the event loop for 80 ms. See docs/adr/0071.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from quart import Request as QuartRequest
from quart import request
from quart.formparser import FormDataParser, ParserFunc
from quart.wrappers.request import Body
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge

from quartapp.i18n import gettext as _

URL_BYTES = 8 * 1024
PARAMETERS = 100
HEADERS = 100
COOKIES = 200
COOKIE_BYTES = 8 * 1024
CONTENT_TYPE_BYTES = 256
# An action on 100 users has a few fields more.
FORM_FIELDS = 110
SMALL_FORM_BYTES = 4 * 1024
# Key in the ASGI scope of the lock that is held while a large form is parsed.
PARSING = "quartapp.parsing"

Scope = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class FormParser(FormDataParser):
    """Parses urlencoded forms of at most FORM_FIELDS fields, and only one large form at a time.

    No form here has files, so multipart bodies are not read: such a form has no fields.
    """

    def get_parse_func(self, mimetype: str, options: dict[str, str]) -> ParserFunc | None:
        """Return the parser of urlencoded forms, and None for all other types."""
        if mimetype == "application/x-www-form-urlencoded":
            return type(self)._parse_urlencoded  # type: ignore[return-value]
        return None

    async def _parse_urlencoded(
        self,
        body: Body,
        mimetype: str,
        content_length: int | None,
        options: dict[str, str],
    ) -> tuple[MultiDict, MultiDict]:
        """Return the fields, and no files. Raises RequestEntityTooLarge (413) above FORM_FIELDS.

        A form of more than SMALL_FORM_BYTES first waits for the lock in the scope. The lock is
        released as long after the parsing as the parsing took.
        """
        data = await body
        if data.count(b"&") >= FORM_FIELDS:
            raise RequestEntityTooLarge
        if len(data) <= SMALL_FORM_BYTES:
            return await super()._parse_urlencoded(body, mimetype, content_length, options)
        # A client can complete many bodies at once. After each large one, the loop has as much time
        # for everything else as it took.
        parsing: asyncio.Lock = cast(Any, request.scope)[PARSING]
        await parsing.acquire()
        started = time.perf_counter()
        try:
            return await super()._parse_urlencoded(body, mimetype, content_length, options)
        finally:
            took = time.perf_counter() - started
            asyncio.get_running_loop().call_later(took, parsing.release)


class Request(QuartRequest):
    form_data_parser_class = FormParser


class RequestBounds:
    """ASGI middleware that refuses a request whose URL or headers exceed the bounds above.

    The answer is 414 (URL) or 431 (headers) in plain text with `Connection: close`. A handshake of
    a socket is closed, which the client sees as 403. No page or browser comes near the bounds.

    Other requests reach the application with the key PARSING in their scope: the lock with which
    `FormParser` parses large forms one by one.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._parsing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Call the application, or answer 414 or 431, or close the handshake with code 1008."""
        status = _refusal(scope) if scope["type"] in ("http", "websocket") else None
        if status is None:
            await self._app({**scope, PARSING: self._parsing}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            body = f"{_('The address or the headers of this request are too long.')}\n".encode()
            await send({"type": "http.response.body", "body": body})


def _refusal(scope: Scope) -> int | None:
    """Return 414 if the URL is too long or has too many parameters; 431 if there are too many
    headers or cookies, or the cookies together or the Content-Type are too long; else None."""
    query = scope["query_string"]
    if len(scope["path"]) + len(query) > URL_BYTES or query.count(b"&") >= PARAMETERS:
        return 414
    headers = scope["headers"]
    if len(headers) > HEADERS:
        return 431
    cookies = cookie_bytes = 0
    for name, value in headers:
        if name == b"cookie":
            cookies += value.count(b";") + 1
            cookie_bytes += len(value)
        elif name == b"content-type" and len(value) > CONTENT_TYPE_BYTES:
            return 431
    return 431 if cookies > COOKIES or cookie_bytes > COOKIE_BYTES else None
