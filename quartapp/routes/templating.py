"""What templates can say beyond Jinja's own words."""

from datetime import datetime
from typing import Any

import humanize
from markupsafe import Markup, escape
from quart import Quart, request

from quartapp import clock
from quartapp.auth import who
from quartapp.forms.csrf import csrf_field
from quartapp.policy import LABELS


def init_app(app: Quart) -> None:
    app.jinja_env.globals.update(csrf_field=csrf_field, needs=needs, labels=LABELS)
    app.jinja_env.filters.update(when=when, moment=moment, paragraphs=paragraphs)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True

    @app.context_processor
    async def where() -> dict[str, Any]:
        return {"path": request.path, "current_user": who()}


def needs(*permissions: str) -> Markup:
    """Attributes of an element that is for those who hold one of the permissions.

    Live pages show and hide it when rights change, so it is always there; what it leads to is
    refused by the server all the same.
    """
    words = " ".join(permissions).split()
    user = who()
    shown = any(user.may(word) for word in words)
    attributes = Markup('data-needs="{}"').format(" ".join(words))
    return attributes if shown else attributes + Markup(" hidden")


def when(at: datetime) -> Markup:
    """How long ago it was; the full time is in the tooltip, and in the page for scripts."""
    delta = clock.now() - at
    if delta.total_seconds() < 45:
        return _time(at, "just now")
    return _time(at, humanize.naturaltime(delta))


def moment(at: datetime) -> Markup:
    return _time(at, _full(at))


def paragraphs(text: str) -> Markup:
    """Plain text as paragraphs, with the line breaks that were typed."""
    blocks = [block.strip() for block in text.replace("\r\n", "\n").split("\n\n")]
    line_break = Markup("<br>\n")
    return Markup("\n").join(
        Markup("<p>{}</p>").format(line_break.join(escape(line) for line in block.split("\n")))
        for block in blocks
        if block
    )


def _time(at: datetime, text: str) -> Markup:
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), _full(at), text
    )


def _full(at: datetime) -> str:
    return f"{at.day} {at:%b %Y, %H:%M} UTC"
