"""Forms for administrators of users: filters of the list, a new user, and actions on several."""

from collections.abc import Iterable, Mapping
from typing import Any

from wtforms import RadioField, SelectField, SelectMultipleField, StringField, ValidationError
from wtforms.validators import AnyOf, InputRequired, Length, Optional

from quartapp.forms.accounts import email_field, username_field
from quartapp.forms.base import Form, tidy
from quartapp.forms.roles import Lacks, Named, RoleChoice
from quartapp.i18n import gettext, ngettext
from quartapp.i18n import lazy_gettext as _
from quartapp.policy import MEMBER

LONGEST_TEXT = 254


class RoleName(SelectField):
    """A list of all roles. Accepts their names in any case, and nothing else."""

    def __init__(self, label: Any, **options: Any) -> None:
        super().__init__(label, choices=[], validate_choice=False, **options)

    def offer(self, roles: Iterable[Named], *, first: str) -> None:
        """Set the choices: an empty one with the label `first`, then the roles."""
        self.choices = [("", first), *((role.name, role.name) for role in roles)]

    def pre_validate(self, form: Any) -> None:
        """Replace the name by the one with the case of the role. Raises ValidationError if it is
        none of the roles passed to `offer`; an empty name is accepted."""
        names = {value.casefold(): value for value, *_ in self.choices or []}
        if self.data and self.data.casefold() not in names:
            raise ValidationError(gettext("This role does not exist."))
        self.data = names.get((self.data or "").casefold(), "")


class UserFilterForm(Form):
    """The filters of the list, from the query of a GET. Fields that are missing are empty."""

    q = StringField(
        _("Search"),
        filters=[tidy],
        validators=[Length(max=LONGEST_TEXT)],
    )
    role = RoleName(_("Role"), default="")
    # `status` is a property of all forms.
    state = SelectField(
        _("Status"),
        name="status",
        default="",
        choices=lambda: [
            ("", gettext("Any status")),
            ("active", gettext("Active")),
            ("disabled", gettext("Disabled")),
            ("unverified", gettext("Unverified email")),
            ("closing", gettext("Deactivated or being deleted")),
        ],
    )
    factor = SelectField(
        _("Second factor"),
        default="",
        choices=lambda: [
            ("", gettext("With or without")),
            ("none", gettext("No second factor")),
        ],
    )
    sort = SelectField(
        _("Sort by"),
        default="username",
        choices=lambda: [
            ("username", gettext("Username")),
            ("created", gettext("Newest account")),
            ("seen", gettext("Last seen")),
        ],
    )

    @property
    def problems(self) -> list[str]:
        """The errors of all fields, each with the label of its field."""
        return [
            gettext("%(field)s: %(error)s", field=field.label.text, error=error)
            for field in self
            for error in field.errors
        ]


class NewUserForm(Form):
    """Creating a user. Every account gets the role member, so that is the default choice."""

    username = username_field()
    email = email_field()
    role = RoleChoice(_("Role"), default=MEMBER, validators=[Optional()])

    def offer(self, roles: Iterable[Named], *, lacks: Lacks) -> None:
        """Set the choices: member, then each other role of which the user lacks no permission."""
        others = [role for role in roles if role.name != MEMBER]
        self.role.offer(others, lacks=lacks, first={MEMBER: MEMBER})

    @property
    def other_role(self) -> str | None:
        """The name of the selected role, or None if it is member."""
        return self.role.data if self.role.data != MEMBER else None


class BulkForm(Form):
    """An action on several users. `at_most` is how many there may be."""

    users = SelectMultipleField(_("Users"), validate_choice=False)
    action = RadioField(_("Action"), validate_choice=False)
    role = RoleName(_("Role"), default="")
    at_most = 100

    def offer(self, roles: Iterable[Named], actions: Mapping[str, str]) -> None:
        """Set the choices of roles and actions. Any other action is a validation error."""
        self.role.offer(roles, first=gettext("Select a role"))
        self.action.choices = list(actions.items())
        self.action.validators = [
            InputRequired(gettext("Select an action.")),
            AnyOf(list(actions), message=gettext("Select an action.")),
        ]

    def validate_users(self, field: SelectMultipleField) -> None:
        """Remove repeated users from the data. Raise ValidationError without users, and for more
        than `at_most`."""
        field.data = list(dict.fromkeys(field.data or []))
        if not field.data:
            raise ValidationError(gettext("Select at least one user in the list."))
        if len(field.data) > self.at_most:
            raise ValidationError(
                ngettext(
                    "Select at most %(num)s user at once.",
                    "Select at most %(num)s users at once.",
                    self.at_most,
                )
            )

    def validate_role(self, field: RoleName) -> None:
        """Raise ValidationError if the action needs a role and none is selected."""
        if self.action.data in ("grant", "revoke") and not field.data:
            raise ValidationError(gettext("Select a role."))

    @property
    def problems(self) -> list[str]:
        """The errors of all fields."""
        return [str(error) for field in self for error in field.errors]
