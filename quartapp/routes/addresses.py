"""Addresses of the pages about one user or one role, for administrators, and of this request.

A name stands in the address as it is, unless a page of its own has this address: an old database
may have a user named "new", and /admin/users/new is the page that creates users. Such a name has an
@ before it, which no name contains. Every address accepts that for all names.
"""

from urllib.parse import quote

from quart import has_websocket_context, request, websocket

from quartapp.models import Role, User
from quartapp.validation import RESERVED_ROLES, RESERVED_USERNAMES, canonical_username


def user_page(user: User, tab: str = "") -> str:
    """Return the address of the user's page for administrators, or of one of its tabs."""
    address = f"/admin/users/{_part(user.username, RESERVED_USERNAMES)}"
    return f"{address}/{tab}" if tab else address


def role_page(role: Role) -> str:
    """Return the address of the page of a role."""
    return f"/admin/roles/{_part(role.name, RESERVED_ROLES)}"


def _part(name: str, reserved: frozenset[str]) -> str:
    """Return the part of an address that stands for the name, quoted."""
    quoted = quote(name, safe="")
    return f"@{quoted}" if canonical_username(name) in reserved else quoted


def name_in(part: str) -> str:
    """Return the name that a part of an address stands for."""
    return part.removeprefix("@")


def route_pattern() -> str | None:
    """Return the pattern of the route for the log; None if no route matched. The path itself may
    contain a token."""
    rule = (websocket if has_websocket_context() else request).url_rule
    return rule and rule.rule
