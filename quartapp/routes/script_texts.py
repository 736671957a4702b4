"""The texts of the scripts in `static`, which each page contains in its language."""

import json
from functools import cache

from markupsafe import Markup

from quartapp.i18n import current_locale, use_locale
from quartapp.i18n import lazy_gettext as _

# By the keys that the scripts pass to `say`. Those of errors are the names of the exceptions.
# For drafts.js and live.js, which only pages of signed-in users have.
_SIGNED_IN = {
    "unsaved": _("You have unsaved text from %(time)s. This form has changed since then."),
    "restore": _("Restore"),
    "restored": _("Restored your unsaved text from %(time)s."),
    "discard": _("Discard"),
    "discarded": _("Unsaved text discarded."),
    "undo": _("Undo"),
    "draftFailed": _("The draft could not be saved on the server. Your text is kept in this tab."),
    "gained": _("You now have: %(permissions)s."),
    "lost": _("You no longer have: %(permissions)s."),
    "changedBy": _("Changed by %(by)s."),
    "signIn": _("New sign-in: %(device)s, %(ip)s."),
    "review": _("Review active sessions"),
    "none": _("none"),
    "refused": _("You no longer have permission to see this page"),
    "removed": _("It requires the permission %(permission)s, which you no longer have."),
    "removedBy": _(
        "It requires the permission %(permission)s, which %(by)s removed from your roles."
    ),
    "unsendable": _(
        "This form can no longer be sent. Your text is kept in this tab, and returns with the "
        "permission."
    ),
    "dismiss": _("Dismiss"),
    "connected": _("Connected: this page updates immediately"),
    "reconnecting": _("Reconnecting…"),
    "offline": _("Offline"),
    "silent": _("No answer for 30 seconds"),
    "stopped": _("Live updates stopped"),
    "signedOut": _("You have signed out"),
    "ended": _("You have been signed out"),
    "over": _("Your session has ended."),
    "by": _("By %(by)s"),
    "again": _("Sign in again"),
    "expired": _("This page has expired"),
    "continue": _("Continue"),
    "continueAs": _("Continue as %(name)s"),
    "sameUser": _("You have signed in again in another tab."),
    "otherUser": _(
        "You are signed in as %(name)s in another tab. This page belongs to %(username)s."
    ),
}
# For passkeys.js.
_PASSKEYS = {
    "unsupported": _("This browser does not support passkeys. Use another browser or device."),
    "InvalidStateError": _("This device already has a passkey for your account."),
    "NotAllowedError": _("No passkey was used. Try again."),
    "NotSupportedError": _("This device cannot create this kind of passkey."),
    "NotAccepted": _("This passkey was not accepted. Try again, or sign in another way."),
    "SecurityError": _("Passkeys do not work at this address."),
    "failed": _("The passkey could not be used. Check your connection and try again."),
}


def element(signed_in: bool) -> Markup:
    """Return a script element with the texts in the current language as JSON; for visitors only
    those for passkeys.

    Browsers do not run it, so the Content-Security-Policy allows it.
    """
    return _element(current_locale(), signed_in)


@cache
def _element(locale: str, signed_in: bool) -> Markup:
    """Return the element for a language. Cached, because the texts do not change."""
    with use_locale(locale):
        known = _PASSKEYS | _SIGNED_IN if signed_in else _PASSKEYS
        texts = {key: str(text) for key, text in known.items()}
    # "<" could end the element.
    content = json.dumps(texts, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="texts">{content}</script>')  # noqa: S704
