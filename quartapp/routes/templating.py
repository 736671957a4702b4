"""Globals and filters of the templates, and a Jinja environment that renders synchronously."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape
from quart import Quart, get_flashed_messages, request
from quart.templating import Environment as QuartEnvironment

from quartapp import clock, runtime
from quartapp.auth import current_user, timezone_cookie_template
from quartapp.db.mongo import DatabaseError
from quartapp.forms.csrf import csrf_field
from quartapp.i18n import devices, ngettext, numbers, times
from quartapp.i18n import gettext as _
from quartapp.i18n import templates as translated
from quartapp.models.factors.factor import NAMES, Factor
from quartapp.policy import LABELS, Permission
from quartapp.routes import addresses, icons, navigation, script_texts
from quartapp.routes.factors import relying_party
from quartapp.settings import Settings


class Template(jinja2.Template):
    async def render_async(self, *args: Any, **kwargs: Any) -> str:
        """Render synchronously. Quart calls this method."""
        return self.render(*args, **kwargs)


class Environment(QuartEnvironment):
    """Quart's environment, but with templates that are compiled to synchronous functions.

    Templates get all data in their context and await nothing. Asynchronous rendering would take a
    sixth more time.
    """

    template_class = Template

    def __init__(self, app: Quart, **options: Any) -> None:
        super().__init__(app, **options)
        self.is_async = False


def init_app(app: Quart, settings: Settings) -> None:
    """Set the globals, filters and options of the Jinja environment, and two context processors:
    one gives all templates `path` and `query` of the request, the other brings the number of open
    requests up to date for a page that fetches itself.

    Call it after all blueprints are registered: it removes the context processors of blueprints,
    which only repeat those of the application. Reads all static files, for the hashes in their
    URLs.
    """
    translated.install(app.jinja_env)
    app.jinja_env.globals.update(csrf_field=csrf_field, needs=needs, labels=LABELS)
    app.jinja_env.globals.update(
        passkeys_work=relying_party.site, passkeys_elsewhere=relying_party.elsewhere
    )
    static = Path(app.root_path) / "static"
    urls = _stamped(static)
    app.jinja_env.globals["static"] = urls.__getitem__
    app.jinja_env.globals["icon"] = icons.renderer(static / "icons.svg", urls["icons.svg"])
    app.jinja_env.globals["avatar"] = icons.avatar
    app.jinja_env.globals.update(user_page=addresses.user_page, role_page=addresses.role_page)
    app.jinja_env.globals.update(arrivals=arrivals, get_flashed_messages=_flashed_messages)
    app.jinja_env.globals["navigation"] = navigation.renderer(app.jinja_env)
    app.jinja_env.globals.update(
        account_area=navigation.ACCOUNT_AREA, current_in=navigation.current_in
    )
    app.jinja_env.filters["device_icon"] = icons.device_icon
    app.jinja_env.globals["zone_name"] = times.zone_name
    app.jinja_env.globals["timezone_cookie"] = timezone_cookie_template
    app.jinja_env.globals["script_texts"] = script_texts.element
    app.jinja_env.globals["live_hide_seconds"] = settings.live_hide_seconds
    app.jinja_env.globals["site_name"] = settings.site_name
    app.jinja_env.globals["support_contact"] = lambda: runtime.settings().support_contact
    app.jinja_env.filters.update(when=when, moment=moment, day=day, paragraphs=paragraphs)
    app.jinja_env.filters["factors"] = factors
    app.jinja_env.filters.update(
        device=devices.device_name, browser=devices.browser_name, system=devices.system_name
    )
    app.jinja_env.filters["seconds"] = numbers.format_seconds
    app.jinja_env.filters["duration"] = times.format_duration
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True

    for name in app.blueprints:
        # Each blueprint has a synchronous context processor that repeats one of the app. Quart
        # would run it in a thread for each page.
        app.template_context_processors[name].clear()

    @app.context_processor
    async def where() -> dict[str, Any]:
        query = request.full_path.partition("?")[2]
        return {
            "path": request.path,
            "query": f"?{query}" if query else "",
        }

    @app.context_processor
    async def count_open_requests() -> dict[str, Any]:
        # A page may fetch itself because another worker has announced a request. This worker may
        # not have heard of it yet, and the navigation shows the number.
        if "X-Background" in request.headers and current_user.may(Permission.USERS_MANAGE):
            with suppress(DatabaseError):
                await runtime.runtime().open_requests.refresh()
        return {}


@pass_context
def needs(context: Context, *permissions: str) -> Markup:
    """Return the attributes of an element for users who have one of the permissions: `data-needs`,
    and `hidden` if the current user has none of them.

    The element is always in the page, so that live.js can show or hide it when permissions change.
    The server checks the permission again when it is used.
    """
    words = " ".join(permissions)
    user = context["current_user"]
    return _needs(words, any(user.may(word) for word in words.split()))


@cache
def _needs(words: str, shown: bool) -> Markup:
    return Markup('data-needs="{}"{}').format(words, "" if shown else Markup(" hidden"))


def arrivals(ids: Iterable[object]) -> Markup:
    """Return the place where a live list says how many rows are new. `ids` are those of its rows.

    It is empty on a page that is opened. When regions.js fetches the page again, it sends the `id`
    of the first row that the user sees, which ends with "-" and the row's id, and shows this link
    instead of moving rows under the pointer.
    """
    first = request.headers.get("X-First", "").rpartition("-")[2]
    text = _arrivals_text([str(each) for each in ids], first) if first else ""
    address = request.full_path.rstrip("?")
    link = Markup('<a href="{}">{}</a>').format(address, text) if text else ""
    return Markup('<p class="arrivals" role="status">{}</p>').format(link)


def _arrivals_text(ids: list[str], first: str) -> str:
    """Return how many rows are above `first`. Ids rise with time: if all are above, there may be
    more on the next page."""
    if first in ids and (count := ids.index(first)):
        return ngettext("%(num)s new", "%(num)s new", count)
    if ids and all(each > first for each in ids):
        return ngettext("%(num)s or more new", "%(num)s or more new", len(ids))
    return _("Show changes")


def _flashed_messages(**options: Any) -> list[Any]:
    """Return Quart's flashed messages. A page that a script fetches in the background shows none,
    and keeps them for the page that the user sees next."""
    return [] if "X-Background" in request.headers else get_flashed_messages(**options)


def _stamped(folder: Path) -> dict[str, str]:
    """Return the URLs of the static files by name.

    They contain a hash of the file, so that browsers can cache them for ever.
    """
    return {
        path.name: f"/static/{path.name}?v={hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        for path in folder.iterdir()
        if path.is_file()
    }


def when(at: datetime) -> Markup:
    """Return a `time` element with a relative time such as "2 hours ago", or with the date in the
    reader's zone for a time that is a week away or more."""
    relative = times.format_relative(at, clock.now())
    if relative is None:
        return _time(at, times.format_date_of(at), ' data-shown="date"')
    return _time(at, relative)


def moment(at: datetime) -> Markup:
    """Return a `time` element with the date and time in the reader's zone."""
    return _time(at, times.format_time(at), ' data-shown="time"')


def day(on: date) -> Markup:
    """Return a `time` element with a date such as "31 Dec 2030"."""
    return Markup('<time datetime="{}">{}</time>').format(on.isoformat(), times.format_day(on))


def paragraphs(text: str) -> Markup:
    """Return plain text as HTML paragraphs that keep its line breaks."""
    blocks = [block.strip() for block in text.replace("\r\n", "\n").split("\n\n")]
    line_break = Markup("<br>\n")
    return Markup("\n").join(
        Markup("<p>{}</p>").format(line_break.join(escape(line) for line in block.split("\n")))
        for block in blocks
        if block
    )


def factors(kinds: Iterable[Factor]) -> str:
    """Return the names of these kinds of factors in alphabetical order, separated by commas."""
    return ", ".join(sorted(str(NAMES[kind]) for kind in kinds))


def _time(at: datetime, text: str, attribute: str = "") -> Markup:
    """Return a `time` element with the text, and the exact time in UTC as attribute and tooltip.

    timezone.js writes those with the attribute `data-shown` again in the browser's zone."""
    # An f-string: `Markup.format` takes ten times as long, and a list has many times.
    iso, exact = at.isoformat(timespec="seconds"), escape(times.format_exact(at))
    html = f'<time datetime="{iso}" title="{exact}"{attribute}>{escape(text)}</time>'
    return Markup(html)  # noqa: S704
