"""Activities of roles."""

from quartapp.activities.activity import Activity, Notification, Notified, register
from quartapp.i18n import lazy_gettext as _

ROLE_GRANTED = register(
    Activity(
        audit="role.granted",
        notification=Notification(
            kind="role.granted", text=_("{by} gave you the role {role}."), email_group="roles"
        ),
        sentence=_("The role {role} was granted"),
    )
)
ROLE_REVOKED = register(
    Activity(
        audit="role.revoked",
        notification=Notification(
            kind="role.revoked",
            text=_("{by} removed the role {role} from you."),
            email_group="roles",
        ),
        sentence=_("The role {role} was revoked"),
        ends_sessions=True,
    )
)
# ---- grants with an end

ROLE_GRANTED_UNTIL = register(
    Activity(
        audit="role.granted_until",
        notification=Notification(
            kind="role.granted_until",
            text=_("{by} gave you the role {role} until {until}."),
            email_group="roles",
        ),
        sentence=_("The role {role} was granted until {until}"),
    )
)
ROLE_END_CHANGED = register(
    Activity(
        audit="role.end_changed",
        notification=Notification(
            kind="role.end_changed",
            text=_("{by} changed how long you have the role {role}: until {until}."),
            email_group="roles",
        ),
        sentence=_("The role {role} now ends on {until}"),
    )
)
_END_REMOVED = Notification(
    kind="role.end_removed",
    text=_("{by} removed the end of your role {role}. You keep it."),
    email_group="roles",
)
ROLE_END_REMOVED = register(
    Activity(
        audit="role.end_removed",
        notification=_END_REMOVED,
        sentence=_("The role {role} no longer ends"),
    )
)
ROLE_ENDS_SOON = register(
    Activity(
        notification=Notification(
            kind="role.ends_soon",
            text=_("Your role {role} ends at {until}. You will then be signed out."),
            email_group="roles",
        ),
    )
)
ROLE_EXPIRED = register(
    Activity(
        audit="role.revoked",
        automatic=True,
        notification=Notification(
            kind="role.expired", text=_("Your role {role} has expired."), email_group="roles"
        ),
        sentence=_("The role {role} expired"),
        ends_sessions=True,
    )
)
# The last administrator does not lose the role.
ROLE_END_SKIPPED = register(
    Activity(
        audit="role.end_removed",
        automatic=True,
        notification=_END_REMOVED,
        sentence=_("The role {role} did not expire, because no other administrator would be left"),
    )
)

# ---- roles themselves

ROLE_CREATED = register(Activity(audit="role.created"))
ROLE_EDITED = register(Activity(audit="role.edited"))
ROLE_DELETED = register(
    Activity(
        audit="role.deleted",
        notification=Notification(
            kind="role.deleted",
            text=_("{by} deleted the role {role}, which you held."),
            email_group="roles",
        ),
        notified=Notified.HOLDERS,
        sentence=_("The role {role}, which you held, was deleted"),
        ends_sessions=True,
    )
)

# ---- requests for roles

ROLE_REQUESTED = register(
    Activity(
        audit="role.requested",
        notification=Notification(
            kind="role.requested",
            text=_("{by} asks for the role {role}."),
            email_group="requests",
        ),
        notified=Notified.ADMINISTRATORS,
        sentence=_("The role {role} was requested"),
    )
)
ROLE_REQUEST_WITHDRAWN = register(
    Activity(
        audit="role.request_withdrawn", sentence=_("The request for the role {role} was withdrawn")
    )
)
ROLE_REQUEST_DECLINED = register(
    Activity(
        audit="role.request_declined",
        notification=Notification(
            kind="role.request_declined",
            text=_("{by} declined your request for the role {role}."),
            email_group="roles",
        ),
        sentence=_("The request for the role {role} was declined"),
    )
)
ROLE_REQUEST_DECLINED_WITH_REASON = register(
    Activity(
        notification=Notification(
            kind="role.request_declined_with_reason",
            text=_("{by} declined your request for the role {role}. The reason: “{answer}”."),
            email_group="roles",
        ),
    )
)
