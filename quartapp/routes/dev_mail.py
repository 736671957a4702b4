"""Pages for development: the emails that were stored because SMTP_HOST is not set.

Not registered in production. The emails contain links that give access to accounts, so the pages
are served to loopback addresses only.
"""

import asyncio

from markupsafe import Markup, escape
from quart import Blueprint, abort, render_template, request

from quartapp.auth import remote_address
from quartapp.email.transports import MailFolder
from quartapp.middleware import forwarded
from quartapp.runtime import settings

blueprint = Blueprint("letters", __name__)

PAGE = 50
# Headers that proxies add. Behind a proxy that is not in TRUSTED_PROXIES, the client is unknown.
BY_PROXIES = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")


@blueprint.before_request
async def only_this_machine() -> None:
    """Answer 404 to every request of these pages unless the client's address is a loopback address.

    Also answers 404 if a proxy that is not in TRUSTED_PROXIES has added its headers, because then
    the address of the client is not known.
    """
    client = forwarded.parse(remote_address() or "")
    trusted = request.scope.get(forwarded.FORWARDED, False)
    hidden = not trusted and any(name in request.headers for name in BY_PROXIES)
    if client is None or not client.is_loopback or hidden:
        abort(404)


@blueprint.get("/dev/mail")
async def all_of_them() -> str:
    """Show the newest PAGE emails, and in which folder they are. Reads them in a thread."""
    letters = await asyncio.to_thread(_folder().newest, PAGE)
    return await render_template("dev/mail.html", letters=letters, folder=_folder().path)


@blueprint.get("/dev/mail/<name>")
async def one(name: str) -> str:
    """Show an email. Answers 404 if there is none of this name."""
    letter = await asyncio.to_thread(_folder().read, name)
    if letter is None:
        abort(404)
    return await render_template("dev/email.html", letter=letter, text=_with_links(letter.text))


def _with_links(text: str) -> Markup:
    """Return the text as HTML, with lines that are URLs of this site as links."""
    base = settings().base_url
    lines = []
    for line in text.splitlines():
        if line.startswith(f"{base}/"):
            lines.append(Markup('<a href="{0}">{0}</a>').format(line))
        else:
            lines.append(escape(line))
    return Markup("\n").join(lines)


def _folder() -> MailFolder:
    return MailFolder(settings().data / "mail")
