"""The reasons for which a session ends, and the sentence that its user reads."""

from enum import StrEnum

from quartapp.i18n import lazy_gettext as _


class Reason(StrEnum):
    """Why a session has ended. The values are stored and sent to clients, so they never change."""

    SIGNED_OUT = "signed_out"
    ENDED_BY_USER = "ended_by_user"
    ENDED_BY_ADMIN = "ended_by_admin"
    ROLE_REVOKED = "role_revoked"
    ROLE_DELETED = "role_deleted"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105
    FACTOR_REQUIRED = "factor_required"
    EMAIL_UNVERIFIED = "email_unverified"
    ACCOUNT_DISABLED = "account_disabled"
    EXPIRED = "expired"

    def message(
        self, by: str | None, *, own: bool = False, because: "EndDetail | None" = None
    ) -> str:
        """Return the sentence for the user whose session has ended.

        `by` is the name of the actor, None for the system or the command line. `own` says that the
        user did it. `because` selects a more precise sentence, unless `own` is set.
        """
        texts = MESSAGES | OWN_MESSAGES if own else MESSAGES
        text = DETAIL_MESSAGES[because] if because and not own else texts[self]
        return text % {"by": by or _("An administrator")}


class EndDetail(StrEnum):
    """A more precise reason, used only for the sentence: EXPIRED and DELETED for ACCOUNT_DISABLED,
    ROLE_EXPIRED for ROLE_REVOKED."""

    EXPIRED = "last_day"
    DELETED = "deleted"
    ROLE_EXPIRED = "role_expired"


MESSAGES = {
    Reason.SIGNED_OUT: _("You signed out."),
    Reason.ENDED_BY_USER: _("You ended this session from another device."),
    Reason.ENDED_BY_ADMIN: _("%(by)s ended your session."),
    Reason.ROLE_REVOKED: _("%(by)s revoked one of your roles. Sign in again to continue."),
    Reason.ROLE_DELETED: _("%(by)s deleted a role that you had. Sign in again to continue."),
    Reason.PASSWORD_CHANGED: _("Your password was changed. Sign in with the new one."),
    Reason.FACTOR_REQUIRED: _("Your account now requires a second factor. Sign in again with it."),
    Reason.EMAIL_UNVERIFIED: _("Your email address must be verified. Sign in to verify it."),
    Reason.ACCOUNT_DISABLED: _("%(by)s disabled your account."),
    Reason.EXPIRED: _("Your session expired. Sign in again to continue."),
}
DETAIL_MESSAGES = {
    EndDetail.EXPIRED: _("Your account has expired."),
    EndDetail.DELETED: _("%(by)s disabled your account. It will be deleted."),
    EndDetail.ROLE_EXPIRED: _("One of your roles has expired. Sign in again to continue."),
}
OWN_MESSAGES = {Reason.ACCOUNT_DISABLED: _("You deactivated or deleted your account.")}
