"""The email that contains a notification, for users who have chosen so."""

from collections.abc import Mapping

from quartapp.activities.activity import Activity, Email, register
from quartapp.i18n import lazy_gettext as _

# Users choose among these on the page of their preferences. Emails about the security of an account
# are in none of them: they are always sent.
EMAIL_GROUPS: Mapping[str, str] = {
    "roles": _("Roles that you are given, that end or that are removed from you"),
    "account": _("What administrators do to your account"),
    "posts": _("Comments on your posts, and removals of what you wrote"),
    "invitations": _("Invitations of yours that are accepted"),
    "requests": _("Requests for roles that you can decide"),
}

NOTIFICATION_BY_EMAIL = register(
    Activity(
        email=Email(
            kind="notification",
            subject=_("New notification"),
            text=(
                "{notification}",
                _("See all your notifications:"),
                "{base}/account/notices",
                _("You get this email because you chose so. To change that, open this page:"),
                "{base}/account/preferences",
            ),
            # The name of the notification, and the words for its text are stored too.
            also_stores=("notification_kind",),
        ),
    )
)
