"""Activities of second factors."""

from quartapp.activities.activity import Activity, Email, Notification, register
from quartapp.i18n import lazy_gettext as _

_IF_NOT_YOU = (
    _(
        "If it was you, there is nothing to do. If it was not, somebody else knows your password. "
        "Set a new password now, and check your second factors:"
    ),
    "{base}/account/factors\n{base}/forgot",
)

FACTOR_ADDED = register(
    Activity(
        audit="factor.added",
        notification=Notification(
            kind="factor.added", text=_("A second factor was added to your account: {factor}.")
        ),
        email=Email(
            kind="factor.added",
            subject=_("A second factor was added"),
            text=(
                _(
                    "A second factor was added to the account {username} on {at}, from {ip}: "
                    "{factor}."
                ),
                *_IF_NOT_YOU,
            ),
        ),
        sentence=_("A second factor was added: {factor}"),
        reportable=True,
    )
)
FACTOR_REMOVED = register(
    Activity(
        audit="factor.removed",
        notification=Notification(
            kind="factor.removed",
            text=_("A second factor was removed from your account: {factor}."),
        ),
        email=Email(
            kind="factor.removed",
            subject=_("A second factor was removed"),
            text=(
                _(
                    "A second factor was removed from the account {username} on {at}, from {ip}: "
                    "{factor}."
                ),
                *_IF_NOT_YOU,
            ),
        ),
        sentence=_("A second factor was removed: {factor}"),
        reportable=True,
    )
)
FACTORS_RESET = register(
    Activity(
        audit="factors.reset",
        notification=Notification(
            kind="factors.reset", text=_("{by} removed all second factors from your account.")
        ),
        email=Email(
            kind="factors.reset",
            subject=_("Your second factors were removed"),
            text=(
                _(
                    "{by} removed all second factors and recovery codes from the account "
                    "{username} on {at}, and ended all its sessions. Now the password alone is "
                    "enough to sign in."
                ),
                _(
                    "If you asked for this, sign in and set up a new second factor. If you did "
                    "not, set a new password now, and ask an administrator who did it:"
                ),
                "{base}/account/factors\n{base}/forgot",
            ),
        ),
        sentence=_("All second factors were removed"),
        ends_sessions=True,
    )
)
PASSKEY_REFUSED = register(
    Activity(
        audit="passkey.refused",
        notification=Notification(
            kind="passkey.refused",
            text=_("A sign-in with your {factor} was refused: there may be a copy of it."),
        ),
        email=Email(
            kind="passkey.refused",
            subject=_("Your passkey may have been copied"),
            text=(
                _(
                    "On {at}, somebody at {ip} tried to sign in to the account {username} with "
                    "the {factor}, and was refused. A passkey counts how often it is used. The "
                    "count of this one went back, so there may be a copy of it."
                ),
                _("Remove the passkey and create a new one:"),
                "{base}/account/factors/passkeys",
            ),
        ),
        sentence=_("A passkey was refused because it may have been copied"),
        reportable=True,
    )
)
CODES_REFUSED = register(
    Activity(
        notification=Notification(
            kind="codes.refused",
            text=_("Somebody entered your password and then wrong codes. They could not sign in."),
        ),
        email=Email(
            kind="codes.refused",
            subject=_("Somebody may know your password"),
            text=(
                _(
                    "Somebody entered the password of the account {username}, and then several "
                    "wrong codes instead of the second factor, the last one on {at} from {ip}. "
                    "They could not sign in."
                ),
                _("If it was you, there is nothing to do. If it was not, set a new password now:"),
                "{base}/forgot",
            ),
        ),
    )
)
CODES_BLOCKED = register(
    Activity(
        audit="codes.blocked",
        notification=Notification(
            kind="codes.blocked",
            text=_("There were too many wrong codes: codes no longer sign in to your account."),
        ),
        email=Email(
            kind="codes.blocked",
            subject=_("Codes no longer sign in to your account"),
            text=(
                _(
                    "Somebody who knows the password of the account {username} entered too many "
                    "wrong codes instead of the second factor, so codes no longer sign in. The "
                    "last one was entered on {at} from {ip}."
                ),
                _(
                    "Set a new password. After that, codes work again, and the old password does "
                    "not:"
                ),
                "{base}/forgot",
            ),
        ),
        sentence=_("Too many wrong codes were entered, so codes no longer sign in"),
    )
)
RECOVERY_CODE_USED = register(
    Activity(
        audit="recovery_code.used",
        notification=Notification(
            kind="recovery_code.used",
            text=_("Somebody signed in with one of your recovery codes. Codes left: {left}."),
        ),
        email=Email(
            kind="recovery_code.used",
            subject=_("A recovery code was used"),
            text=(
                _(
                    "Somebody signed in to the account {username} with a recovery code instead of "
                    "the second factor on {at}, from {ip}. Codes left: {left}."
                ),
                *_IF_NOT_YOU,
            ),
        ),
        sentence=_("A recovery code was used"),
        reportable=True,
    )
)
RECOVERY_CODES_CREATED = register(
    Activity(
        audit="recovery_codes.made",
        notification=Notification(
            kind="recovery_codes.made",
            text=_("New recovery codes were created. The old recovery codes no longer work."),
        ),
        email=Email(
            kind="recovery_codes.made",
            subject=_("New recovery codes were created"),
            text=(
                _(
                    "New recovery codes were created for the account {username} on {at}, from "
                    "{ip}. The old ones no longer work."
                ),
                *_IF_NOT_YOU,
            ),
        ),
        sentence=_("New recovery codes were created"),
        reportable=True,
    )
)
