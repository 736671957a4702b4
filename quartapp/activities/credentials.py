"""Activities of passwords and email addresses."""

from quartapp.activities.activity import Activity, Email, Notification, register
from quartapp.i18n import lazy_gettext as _

_PASSWORD_CHANGED = Notification(
    kind="password.changed", text=_("Your password was changed. All other sessions were ended.")
)
_PASSWORD_CHANGED_EMAIL = Email(
    kind="password.changed",
    subject=_("Your password was changed"),
    text=(
        _(
            "The password of the account {username} was changed on {at}, from {ip}. All other "
            "sessions were ended."
        ),
        _("If it was you, there is nothing to do. If it was not, set a new password now:"),
        "{base}/forgot",
    ),
)
PASSWORD_CHANGED = register(
    Activity(
        audit="password.changed",
        notification=_PASSWORD_CHANGED,
        email=_PASSWORD_CHANGED_EMAIL,
        sentence=_("The password was changed"),
        reportable=True,
    )
)
PASSWORD_RESET_REQUESTED = register(
    Activity(
        email=Email(
            kind="password.reset",
            subject=_("Set a new password"),
            text=(
                _(
                    "You, or somebody else, asked on {at} from {ip} for a new password for "
                    "{account}."
                ),
                _("Set a new password on this page:"),
                "{base}/reset/{token}",
                _(
                    "The link works once, for 30 minutes. If it was not you, ignore this email. "
                    "Your password stays the same."
                ),
            ),
            lane="reset",
        ),
    )
)
# Goes to a person for whom an administrator has created an account.
FIRST_PASSWORD_REQUESTED = register(
    Activity(
        email=Email(
            kind="password.first",
            subject=_("Set a password for your new account"),
            text=(
                _("An administrator has created the account {username} for you at {site}."),
                _("Set a password on this page, then sign in:"),
                "{base}/reset/{token}",
                _(
                    "The link works once, for 30 minutes. After that, ask for a new one on this "
                    "page:"
                ),
                "{base}/forgot",
            ),
            lane="reset",
        ),
    )
)
PASSWORD_RESET = register(
    Activity(
        audit="password.reset",
        notification=_PASSWORD_CHANGED,
        email=_PASSWORD_CHANGED_EMAIL,
        sentence=_("A forgotten password was replaced"),
        reportable=True,
        ends_sessions=True,
    )
)

# ---- email addresses

EMAIL_VERIFICATION_REQUESTED = register(
    Activity(
        email=Email(
            kind="address.confirm",
            subject=_("Verify your email address"),
            text=(
                _("Verify that this email address is yours, to use it at {site}. Open this page:"),
                "{base}/verify/{token}",
                _("Or enter this code on the page that asks for it: {code}"),
                _("Both work for 10 minutes."),
                _(
                    "If you did not ask for this, ignore this email: somebody else entered your "
                    "address, and can't use it without you. Do not give anyone the code."
                ),
            ),
            lane="verification",
        ),
    )
)
# Sent instead of the email above if the address already belongs to an account.
EMAIL_ALREADY_IN_USE = register(
    Activity(
        email=Email(
            kind="address.taken",
            subject=_("You already have an account"),
            text=(
                _(
                    "Somebody, probably you, entered {to} to create an account or to change the "
                    "address of one at {site}. You already have an account with this address, so "
                    "nothing was changed."
                ),
                _("Sign in to your account:"),
                "{base}/login",
                _("If you forgot your password, set a new one: {base}/forgot"),
                _("If it was not you, ignore this email."),
            ),
        ),
    )
)
EMAIL_VERIFIED = register(
    Activity(
        audit="email.confirmed",
        sentence=_("The email address was verified"),
        reportable=True,
    )
)
EMAIL_CHANGED = register(
    Activity(
        audit="email.changed",
        notification=Notification(kind="email.changed", text=_("Your email address was changed.")),
        # Goes to the old address, if that was verified.
        email=Email(
            kind="address.changed",
            subject=_("Your email address was changed"),
            text=(
                _(
                    "The email address of the account {username} was changed on {at}, from {ip}. "
                    "This address no longer gets email about the account."
                ),
                _(
                    "If it was you, there is nothing to do. If it was not, restore this address. "
                    "That signs the account out everywhere, and you can set a new password:"
                ),
                "{base}/undo/{token}",
                _("The link works once, for 72 hours after the change."),
            ),
            lane="address",
            also_stores=("undo",),
        ),
        sentence=_("The email address was changed"),
        reportable=True,
    )
)
EMAIL_RESTORED = register(
    Activity(
        audit="email.restored",
        notification=Notification(
            kind="email.restored",
            text=_("A change of your email address was undone from the old address."),
        ),
        sentence=_("A change of the email address was undone"),
        reportable=True,
        ends_sessions=True,
    )
)
