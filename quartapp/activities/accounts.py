"""Activities of accounts: creation, expiry, deactivation, deletion and export."""

from quartapp.activities.activity import Activity, Email, Notification, Notified, register
from quartapp.i18n import lazy_gettext as _

ACCOUNT_CREATED = register(
    Activity(
        audit="user.registered",
        notification=Notification(
            kind="welcome", text=_("Welcome, {by}. Changes to your account are shown here.")
        ),
        sentence=_("The account was created"),
    )
)
ACCOUNT_DISABLED = register(
    Activity(
        audit="user.disabled",
        notification=Notification(
            kind="account.disabled", text=_("{by} disabled your account."), email_group="account"
        ),
        sentence=_("The account was disabled"),
        ends_sessions=True,
    )
)
ACCOUNT_ENABLED = register(
    Activity(
        audit="user.enabled",
        notification=Notification(
            kind="account.enabled",
            text=_("{by} enabled your account again."),
            email_group="account",
        ),
        sentence=_("The account was enabled again"),
    )
)

# ---- expiry

_EXPIRY_REMOVED = Notification(
    kind="last_day.lifted",
    text=_("{by} removed your account's expiry date. It no longer expires."),
    email_group="account",
)
EXPIRY_SET = register(
    Activity(
        audit="last_day.set",
        notification=Notification(
            kind="last_day.set",
            text=_(
                "{by} set your account's expiry date: it is disabled at the end of {day} (UTC)."
            ),
            email_group="account",
        ),
        sentence=_("The account expires at the end of {day} (UTC)"),
    )
)
EXPIRY_REMOVED = register(
    Activity(
        audit="last_day.lifted",
        notification=_EXPIRY_REMOVED,
        sentence=_("The account no longer expires"),
    )
)
ACCOUNT_EXPIRED = register(
    Activity(
        audit="user.disabled",
        automatic=True,
        notification=Notification(
            kind="last_day.over",
            text=_("Your account expired at the end of {day} (UTC), and was disabled."),
            email_group="account",
        ),
        sentence=_("The account was disabled because it expired"),
        ends_sessions=True,
    )
)
# The account of the last administrator does not expire.
EXPIRY_SKIPPED = register(
    Activity(
        audit="last_day.lifted",
        automatic=True,
        notification=_EXPIRY_REMOVED,
        sentence=_("The account did not expire, because no other administrator would be left"),
    )
)

# ---- deactivation and deletion

_DEACTIVATED = Notification(kind="account.closed", text=_("{by} deactivated your account."))
ACCOUNT_DEACTIVATED = register(
    Activity(
        audit="user.deactivated",
        notification=_DEACTIVATED,
        notified=Notified.USER_UNLESS_ACTOR,
        email=Email(
            kind="account.closed",
            subject=_("Your account is deactivated"),
            text=(
                _(
                    "The account {username} was deactivated on {at}, from {ip}, and signed out "
                    "everywhere. All its data is kept."
                ),
                _("To reactivate it, sign in:"),
                "{base}/login",
                _("If it was not you who deactivated it, set a new password first: {base}/forgot"),
            ),
        ),
        sentence=_("The account was deactivated"),
        reportable=True,
        ends_sessions=True,
    )
)
DELETION_SCHEDULED = register(
    Activity(
        audit="user.leaving",
        notification=_DEACTIVATED,
        notified=Notified.USER_UNLESS_ACTOR,
        email=Email(
            kind="account.leaving",
            subject=_("Your account will be deleted"),
            text=(
                _(
                    "The account {username} was deactivated on {at}, from {ip}, and signed out "
                    "everywhere. It will be deleted on {until}. A deleted account cannot be "
                    "restored."
                ),
                _('Until then you can keep it. Sign in, and press "Keep my account":'),
                "{base}/login",
                _("If it was not you who deactivated it, set a new password first: {base}/forgot"),
            ),
        ),
        email_by_others=Email(
            kind="account.removed",
            subject=_("Your account will be deleted"),
            text=(
                _(
                    "An administrator deactivated the account {username}. It will be deleted on "
                    "{until}. A deleted account cannot be restored."
                ),
                _("If you think that this is a mistake, contact an administrator before then."),
            ),
        ),
        sentence=_("The account was deactivated, and will be deleted"),
        reportable=True,
        ends_sessions=True,
    )
)
ACCOUNT_RESTORED = register(
    Activity(
        audit="user.restored",
        notification=Notification(kind="account.restored", text=_("{by} restored your account.")),
        notified=Notified.USER_UNLESS_ACTOR,
        email=Email(
            kind="account.restored",
            subject=_("Your account is active again"),
            text=(
                _("The account {username} was restored on {at}, and will not be deleted."),
                _("If neither you nor an administrator did that, set a new password now:"),
                "{base}/forgot",
            ),
        ),
        sentence=_("The account was restored"),
        reportable=True,
    )
)
ACCOUNT_DELETED = register(Activity(audit="user.erased"))

# ---- personal data

DATA_EXPORTED = register(
    Activity(
        audit="data.exported",
        sentence=_("All data of the account was downloaded"),
        reportable=True,
    )
)
AUDIT_EXPORTED = register(Activity(audit="audit.exported"))
