"""Activities of sessions."""

from quartapp.activities.activity import Activity, Email, Notification, Notified, register
from quartapp.i18n import lazy_gettext as _

SIGNED_IN = register(
    Activity(
        audit="session.started",
        # Only for a browser in which the user has not signed in before.
        email=Email(
            kind="session.started",
            subject=_("Signed in from a new browser"),
            text=(
                _(
                    "Somebody signed in to the account {username} from a browser that was not used "
                    "there before."
                ),
                _("Browser: {device}\nIP address: {ip}\nTime: {at}"),
                _(
                    "If it was you, there is nothing to do. If it was not, report it on this page. "
                    "That ends the session, and you can set a new password:"
                ),
                "{base}/account/timeline",
            ),
        ),
        sentence=_("Signed in"),
        reportable=True,
    )
)
REAUTHENTICATED = register(
    Activity(audit="session.confirmed", sentence=_("Re-entered the password"), reportable=True)
)
SESSION_ENDED = register(
    Activity(
        audit="session.ended",
        sentence=_("A session was signed out"),
        reportable=True,
        ends_sessions=True,
    )
)
SESSIONS_ENDED = register(
    Activity(
        audit="sessions.ended",
        notification=Notification(
            kind="sessions.ended", text=_("{by} ended your sessions."), email_group="account"
        ),
        notified=Notified.USER_UNLESS_ACTOR,
        sentence=_("Sessions were signed out"),
        reportable=True,
        ends_sessions=True,
    )
)
ACTIVITY_DISOWNED = register(
    Activity(
        audit="activity.disowned",
        email=Email(
            kind="activity.disowned",
            # `what` is the sentence of the event, in the language of the receiver.
            also_stores=("event",),
            subject=_("You reported activity that was not you"),
            text=(
                _("Somebody signed in to the account {username} reported that this was not them:"),
                "{what}, {when}",
                _(
                    "All other sessions were ended. The other person may still have a way into the "
                    "account, so follow these steps:"
                ),
                "{base}/account/timeline/not-me",
                _(
                    "If you did not report this, set a new password now: {base}/forgot\nIf the "
                    "email with the link does not reach you, contact an administrator."
                ),
            ),
        ),
        sentence=_("You reported activity that was not you, and all other sessions were ended"),
        ends_sessions=True,
    )
)
