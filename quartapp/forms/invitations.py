"""Forms for sending and accepting an invitation."""

from collections.abc import Iterable

from wtforms import PasswordField
from wtforms.validators import Optional

from quartapp.forms.accounts import (
    email_field,
    new_password_field,
    refuse_obvious_password,
    repeated_field,
    username_field,
)
from quartapp.forms.base import Form
from quartapp.forms.roles import Lacks, Named, RoleChoice
from quartapp.i18n import lazy_gettext as _
from quartapp.policy import MEMBER

# Every account gets the role member, and can be given another one.
_BOTH = _("member and %(name)s")


class InviteForm(Form):
    """Inviting a person. Every account gets the role member, so that is the default choice."""

    email = email_field(missing=_("Enter an email address."))
    role = RoleChoice(_("Role"), default=MEMBER, validators=[Optional()])

    def offer(self, roles: Iterable[Named], *, lacks: Lacks) -> None:
        """Set the choices: member, then "member and ..." for each other role of which the user
        lacks no permission."""
        others = [role for role in roles if role.name != MEMBER]
        self.role.offer(others, lacks=lacks, first={MEMBER: MEMBER}, label=_BOTH)

    @property
    def other_role(self) -> str | None:
        """The name of the selected role, or None if it is member, which every account gets."""
        return self.role.data if self.role.data != MEMBER else None


class InvitedForm(Form):
    """Accepting an invitation. Set `email` to the invited address before validating."""

    username = username_field()
    password = new_password_field(_("Password"))
    confirm = repeated_field(_("Repeat password"))
    email = ""

    def validate_password(self, field: PasswordField) -> None:
        """Reject an obvious password. The username and the invited address count as obvious
        words."""
        refuse_obvious_password(field, [self.username.data or "", self.email])
