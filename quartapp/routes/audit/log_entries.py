"""Entries of the audit log as they are shown: sentences with links, and details."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from beanie import PydanticObjectId
from bson import DBRef
from markupsafe import Markup

from quartapp.auth import current_user
from quartapp.i18n import gettext as _
from quartapp.i18n import lazy_gettext
from quartapp.i18n.devices import device_name
from quartapp.i18n.numbers import format_capped
from quartapp.i18n.times import format_time
from quartapp.models import Event, Role, User
from quartapp.models.accounts.administrators import LAST_ADMINISTRATOR
from quartapp.models.audit.sentences import actor_words, sentence, words
from quartapp.models.base.references import linked_id
from quartapp.models.factors.factor import described
from quartapp.policy import Permission, may
from quartapp.routes.addresses import role_page, user_page


@dataclass(frozen=True)
class LogEntry:
    """An entry of the audit log with its sentence as HTML, and its details as labels and texts."""

    event: Event
    text: Markup
    details: Sequence[tuple[str, str]]


async def log_entries(events: Sequence[Event]) -> list[LogEntry]:
    """Return the entries for events whose actors and subjects are fetched.

    Persons and existing roles are links, to pages that the current user may open. Makes one query,
    for the roles, if the current user may open their pages.
    """
    roles: Mapping[str, Markup] = {}
    if may(current_user, Permission.ROLES_MANAGE) and any("role" in e.details for e in events):
        roles = {role.name: _link(role_page(role), role.name) for role in await Role.everyone()}
    return [LogEntry(event, _text(event, roles), list(_details(event))) for event in events]


def _text(event: Event, roles: Mapping[str, Markup]) -> Markup:
    """Return the sentence of the event as HTML. `roles` are the links to roles by name."""
    role = str(event.details.get("role", ""))
    given = words(
        event,
        actor=_person(event.actor) or actor_words(event),
        subject=_person(event.subject),
        erased=Markup('<span class="quiet">{}</span>').format(_("[erased]")),
        **({"role": roles[role]} if role in roles else {}),
    )
    return Markup(str(sentence(event))) % given  # noqa: S704


def _person(person: Any) -> Markup | None:
    """Return a link to the person, to the page that the current user may open; for a deleted user,
    to the entries about them, or without `events.read` only the words. None for None."""
    if person is None:
        return None
    if isinstance(person, User):
        reads = may(current_user, Permission.USERS_READ)
        address = user_page(person) if reads else f"/users/{quote(person.username, safe='')}"
        return _link(address, person.username)
    if not may(current_user, Permission.EVENTS_READ):
        return Markup('<span class="quiet">{}</span>').format(_("deleted user"))
    return Markup('<a class="quiet" href="/admin/events?person={}">{}</a>').format(
        linked_id(person), _("deleted user")
    )


def _link(address: str, name: str) -> Markup:
    """Return a link with the name as its text."""
    return Markup('<a href="{}">{}</a>').format(address, name)


# Names of details; others, such as those of extensions, are shown as they are stored.
LABELS = {
    "count": lazy_gettext("Number"),
    "day": lazy_gettext("Expires on"),
    "description": lazy_gettext("Description"),
    "device": lazy_gettext("Device"),
    "email": lazy_gettext("Email address"),
    "event": lazy_gettext("Entry"),
    "expired": lazy_gettext("Expired"),
    "factor": lazy_gettext("Second factor"),
    "format": lazy_gettext("Format"),
    "holders": lazy_gettext("Users"),
    "end": lazy_gettext("Previous end"),
    "last_day": lazy_gettext("Expires on"),
    "left": lazy_gettext("Codes left"),
    "name": lazy_gettext("Name"),
    "of": lazy_gettext("Activity"),
    "permissions": lazy_gettext("Permissions"),
    "posts": lazy_gettext("Posts and comments"),
    "reason": lazy_gettext("Reason"),
    "requestable": lazy_gettext("Requests"),
    "requires_factor": lazy_gettext("Require a second factor"),
    "role": lazy_gettext("Role"),
    "roles": lazy_gettext("Roles"),
    "title": lazy_gettext("Title"),
    "until": lazy_gettext("Until"),
    "verified": lazy_gettext("Verified"),
    "was": lazy_gettext("Before"),
    "why": lazy_gettext("Reason"),
}
# What is stored for a detail, and how it is shown.
_LAST = lazy_gettext("No other administrator would be left")
CODES = {
    ("posts", "kept"): lazy_gettext("kept"),
    ("posts", "removed"): lazy_gettext("removed"),
    ("why", LAST_ADMINISTRATOR): _LAST,
    ("why", "the last administrator"): _LAST,
}


def _details(event: Event) -> Iterator[tuple[str, str]]:
    """Yield the label and the text of each detail that is not empty."""
    for name, value in event.details.items():
        if text := _named_detail(name, value, event):
            yield str(LABELS.get(name) or name.replace("_", " ").capitalize()), text


def _named_detail(name: str, value: Any, event: Event) -> str:
    """Return the value of the detail of this name as text; empty for one that is not shown."""
    if isinstance(value, str) and (code := CODES.get((name, value))):
        return str(code)
    match name:
        case "device":
            return device_name(value)
        # Earlier versions stored a text.
        case "holders" if isinstance(value, int):
            return format_capped(value, "more" in event.details)
        case "more" if "holders" in event.details:
            return ""
        # Ids of entries, for the verification of the log.
        case "erased":
            return ""
        case "factor":
            return described(value)
        case _:
            return _detail(value)


def _detail(value: Any) -> str:
    """Return the value of a detail as text in the current language; empty for None and for what is
    empty. Lists and mappings are joined with commas."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_detail, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_detail(each)}" for name, each in value.items())
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, DBRef | PydanticObjectId):
        return str(value.id if isinstance(value, DBRef) else value)
    return "" if value is None else str(value)
