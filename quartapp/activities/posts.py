"""Activities of posts and comments."""

from quartapp.activities.activity import Activity, Notification, register
from quartapp.i18n import lazy_gettext as _

POST_REMOVED = register(
    Activity(
        audit="post.removed",
        notification=Notification(
            kind="post.removed", text=_("{by} removed your post “{title}”."), email_group="posts"
        ),
    )
)
COMMENT_REMOVED = register(
    Activity(
        audit="comment.removed",
        notification=Notification(
            kind="comment.removed",
            text=_("{by} removed your comment on “{title}”."),
            # Whose words the title is, so that it can be erased with that account.
            also_stores=("author",),
            email_group="posts",
        ),
    )
)
COMMENT_ADDED = register(
    Activity(
        notification=Notification(
            kind="comment.added",
            text=_("{by} commented on “{title}”."),
            also_stores=("post",),
            email_group="posts",
        ),
    )
)
