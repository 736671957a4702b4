"""Activities of invitations."""

from quartapp.activities.activity import Activity, Email, Notification, Notified, register
from quartapp.i18n import lazy_gettext as _

# Goes to the invited address, which has no account yet.
INVITATION = Email(
    kind="user.invited",
    subject=_("You are invited to create an account"),
    text=(
        _("{inviter} invites you to create an account for {to} at {site}. It comes with: {roles}."),
        _("Choose a username and a password on this page:"),
        "{base}/invited/{token}",
        _(
            "The link works once, for 7 days. If you do not want an account, ignore this email. No "
            "account is created."
        ),
    ),
    lane="invitation",
    also_stores=("invitation",),
)

USER_INVITED = register(Activity(audit="user.invited", email=INVITATION))
INVITATION_SENT_AGAIN = register(Activity(audit="invitation.sent_again", email=INVITATION))
INVITATION_WITHDRAWN = register(Activity(audit="invitation.withdrawn"))
INVITATION_ACCEPTED = register(
    Activity(
        audit="invitation.accepted",
        notification=Notification(
            kind="invitation.accepted",
            text=_("{by} accepted your invitation to {email}."),
            email_group="invitations",
        ),
        notified=Notified.INVITER,
        sentence=_("An invitation was accepted, which gave the roles: {roles}"),
    )
)
