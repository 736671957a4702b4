"""Names of the actions that require re-authentication, for the page that asks for it."""

from collections.abc import Mapping
from typing import Any

from quartapp.i18n import lazy_gettext as _

# Phrases by endpoint. `%(names)s` are arguments of the URL and fields of the form. The first
# phrase whose names all have values is used.
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "addresses.change": (
        _("change your email address to %(email)s"),
        _("change your email address"),
    ),
    "admin_bulk.do": (_("act on several users"),),
    "admin_invitations.index": (
        _("invite %(email)s with the role %(role)s"),
        _("invite %(email)s"),
    ),
    "admin_invitations.send_again": (_("send an invitation again"),),
    "admin_invitations.withdraw": (_("withdraw an invitation"),),
    "admin_leaving.delete": (_("delete the account of %(username)s"),),
    "admin_leaving.restore": (_("restore the account of %(username)s"),),
    "admin_requests.decline": (_("decline a request for a role"),),
    "admin_requests.grant": (_("grant a requested role"),),
    "admin_roles.delete": (_("delete the role %(name)s"),),
    "admin_roles.edit": (_("change the role %(name)s"),),
    "admin_roles.new": (_("create the role %(name)s"), _("create a role")),
    "admin_sessions.end": (_("end a session"),),
    "admin_user_list.new": (_("create the user %(username)s"), _("create a user")),
    "admin_users.disable": (_("disable the account of %(username)s"),),
    "admin_users.enable": (_("enable the account of %(username)s"),),
    "admin_users.end_sessions": (_("end all sessions of %(username)s"),),
    "admin_users.grant": (
        _("grant the role %(role)s to %(username)s"),
        _("grant a role to %(username)s"),
    ),
    "admin_users.reset_factors": (_("remove all second factors of %(username)s"),),
    "admin_users.revoke": (_("revoke the role %(role_name)s from %(username)s"),),
    "admin_users.set_expiry": (
        _("set the expiry of the account of %(username)s to %(date)s"),
        _("remove the expiry of the account of %(username)s"),
    ),
    "exports.export": (_("export your data"),),
    "factors.app": (_("set up an authenticator app"),),
    "factors.make_codes": (_("create new recovery codes"),),
    "factors.remove_app": (_("remove your authenticator app"),),
    "leaving.deactivate": (_("deactivate your account"),),
    "leaving.delete": (_("delete your account"),),
    "passkeys.mine": (_("add the passkey %(name)s"), _("add a passkey")),
    "passkeys.remove": (_("remove a passkey"),),
    "passkeys.rename": (_("rename a passkey to %(name)s"), _("rename a passkey")),
    "sessions.end": (_("end a session"),),
    "sessions.end_others": (_("end all your other sessions"),),
    "undo.run": (_("undo an action"),),
    "timeline.not_me": (_("report a sign-in that was not you"),),
}
UNNAMED = _("continue")


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
            return phrase % named
        except KeyError:
            continue
    return UNNAMED


def _short(value: str) -> str:
    """Return the value on one line without unprintable characters, cut to 80 characters."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return plain if len(plain) <= 80 else f"{plain[:79]}…"
