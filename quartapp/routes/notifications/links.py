"""The pages that notifications are about."""

from typing import Any

from quartapp.models import Notice

# By the beginning of the kind; the first that matches counts.
_PAGES = (
    ("comment.", "/posts/{post}"),
    ("post.", "/posts"),
    ("password.", "/account/password"),
    ("email.", "/account/email"),
    (("factor", "passkey", "codes", "recovery_codes", "recovery_code"), "/account/factors"),
    ("sessions.", "/account/sessions"),
    ("invitation.", "/admin/invitations"),
    ("", "/account/timeline"),
)


def address(notice: Notice) -> str:
    """Return the path of the page that the notification is about, or that of the user's activity.

    A notification of an older version may lack the id of its document; then it is that of the list.
    """
    data: dict[str, Any] = notice.data
    path = next(path for kind, path in _PAGES if notice.kind.startswith(kind))
    return path.format(post=data["post"]) if "post" in data else path.removesuffix("/{post}")
