"""Names of the actions that require re-authentication, for the page that asks for it."""

from collections.abc import Mapping
from typing import Any

# Phrases by endpoint. Names in braces are arguments of the URL and fields of the form. The first
# phrase whose names all have values is used.
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "addresses.change": ("change your email address to {email}", "change your email address"),
    "admin_invitations.index": ("invite {email} with the role {role}", "invite {email}"),
    "admin_invitations.send_again": ("send an invitation again",),
    "admin_invitations.withdraw": ("withdraw an invitation",),
    "admin_leaving.delete": ("delete the account of {username}",),
    "admin_leaving.restore": ("restore the account of {username}",),
    "admin_roles.delete": ("delete the role {name}",),
    "admin_roles.edit": ("change the role {name}",),
    "admin_roles.new": ("create the role {name}", "create a role"),
    "admin_users.disable": ("disable the account of {username}",),
    "admin_users.enable": ("enable the account of {username}",),
    "admin_users.end_sessions": ("end all sessions of {username}",),
    "admin_users.grant": ("grant the role {role} to {username}", "grant a role to {username}"),
    "admin_users.reset_factors": ("remove all second factors of {username}",),
    "admin_users.revoke": ("revoke the role {role_name} from {username}",),
    "admin_users.set_expiry": (
        "set the expiry of the account of {username} to {date}",
        "remove the expiry of the account of {username}",
    ),
    "exports.export": ("export your data",),
    "factors.app": ("set up an authenticator app",),
    "factors.make_codes": ("create new recovery codes",),
    "factors.remove_app": ("remove your authenticator app",),
    "leaving.deactivate": ("deactivate your account",),
    "leaving.delete": ("delete your account",),
    "passkeys.mine": ("add the passkey {name}", "add a passkey"),
    "passkeys.remove": ("remove a passkey",),
    "passkeys.rename": ("rename a passkey to {name}", "rename a passkey"),
    "sessions.end": ("end a session",),
    "sessions.end_others": ("end all your other sessions",),
    "timeline.not_me": ("report a sign-in that was not you",),
}
UNNAMED = "continue"


def action(endpoint: str | None, *values: Mapping[str, Any]) -> str:
    """Return what a request would do, such as "revoke the role editor from ada". "continue" for an
    endpoint that is not in ACTIONS, or if no phrase has values for all its names.

    The mappings give the values of names; an earlier one takes precedence. Values are shortened to
    80 characters.
    """
    named = {
        name: short
        for mapping in reversed(values)
        for name, value in mapping.items()
        if (short := _short(str(value)))
    }
    for phrase in ACTIONS.get(endpoint or "", ()):
        try:
            return phrase.format_map(named)
        except KeyError:
            continue
    return UNNAMED


def _short(value: str) -> str:
    """Return the value on one line without unprintable characters, cut to 80 characters."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return plain if len(plain) <= 80 else f"{plain[:79]}…"
