"""For development: the letters that no server was named for. Not routed in production."""

import asyncio

from markupsafe import Markup, escape
from quart import Blueprint, abort, render_template

from quartapp.auth import settings
from quartapp.mail.carriers import Folder

blueprint = Blueprint("letters", __name__)

PAGE = 50


@blueprint.get("/dev/mail")
async def all_of_them() -> str:
    letters = await asyncio.to_thread(_folder().newest, PAGE)
    return await render_template("dev/mail.html", letters=letters, folder=_folder().path)


@blueprint.get("/dev/mail/<name>")
async def one(name: str) -> str:
    letter = await asyncio.to_thread(_folder().letter, name)
    if letter is None:
        abort(404)
    return await render_template("dev/letter.html", letter=letter, text=_with_links(letter.text))


def _with_links(text: str) -> Markup:
    """Our own addresses can be followed, as in a mail program."""
    base = settings().base_url
    lines = []
    for line in text.splitlines():
        if line.startswith(f"{base}/"):
            lines.append(Markup('<a href="{0}">{0}</a>').format(line))
        else:
            lines.append(escape(line))
    return Markup("\n").join(lines)


def _folder() -> Folder:
    return Folder(settings().data / "mail")
