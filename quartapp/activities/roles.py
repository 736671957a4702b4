"""Activities of roles."""

from quartapp.activities.activity import Activity, Notification, Notified, register

ROLE_GRANTED = register(
    Activity(
        audit="role.granted",
        notification=Notification(
            kind="role.granted", text="{by} gave you the role {role}.", email_group="roles"
        ),
        sentence="The role {role} was granted",
    )
)
ROLE_REVOKED = register(
    Activity(
        audit="role.revoked",
        notification=Notification(
            kind="role.revoked",
            text="{by} removed the role {role} from you.",
            email_group="roles",
        ),
        sentence="The role {role} was revoked",
        ends_sessions=True,
    )
)
ROLE_CREATED = register(Activity(audit="role.created"))
ROLE_EDITED = register(Activity(audit="role.edited"))
ROLE_DELETED = register(
    Activity(
        audit="role.deleted",
        notification=Notification(
            kind="role.deleted", text="{by} deleted the role {role}, which you held."
        ),
        notified=Notified.HOLDERS,
        sentence="The role {role}, which you held, was deleted",
        ends_sessions=True,
    )
)
