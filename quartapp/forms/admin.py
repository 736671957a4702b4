"""Administration: roles, granting them, inviting people, and their last days."""

from collections.abc import Iterable
from typing import Protocol

from wtforms import BooleanField, DateField, SelectField, SelectMultipleField, StringField
from wtforms.validators import DataRequired, Optional
from wtforms.widgets import CheckboxInput, ListWidget

from quartapp import names
from quartapp.forms.accounts import email_field
from quartapp.forms.base import Checked, Form, tidy
from quartapp.policy import LABELS, MEMBER


class Named(Protocol):
    name: str


class GrantForm(Form):
    role = SelectField("Role", validators=[DataRequired("Choose a role.")])

    def offer(self, roles: Iterable[Named]) -> None:
        self.role.choices = {role.name: role.name for role in roles}


class InviteForm(Form):
    """Everybody becomes a member, so that this role, or none, is the first choice."""

    email = email_field(whose="an")
    role = SelectField("Role", validators=[Optional()])

    def offer(self, roles: Iterable[Named]) -> None:
        others = {role.name: f"{MEMBER} and {role.name}" for role in roles if role.name != MEMBER}
        self.role.choices = {MEMBER: MEMBER, **others}

    @property
    def other_role(self) -> str | None:
        return self.role.data if self.role.data != MEMBER else None


class Day(DateField):
    def process_formdata(self, valuelist: list[str]) -> None:
        try:
            super().process_formdata(valuelist)
        except ValueError:
            raise ValueError("Write the day like 2030-12-31.") from None


class LastDayForm(Form):
    """Without a date it takes the last day back."""

    date = Day("Last day", validators=[Optional()])


class RoleForm(Form):
    name = StringField(
        "Name",
        filters=[tidy],
        description="Letters, digits, dot, dash and underscore; up to 32.",
        validators=[
            DataRequired("A role needs a name."),
            Checked(names.check_role_name),
        ],
    )
    description = StringField(
        "Description",
        filters=[tidy],
        validators=[Checked(names.check_description)],
    )
    permissions = SelectMultipleField(
        "Permissions",
        choices={permission.value: label for permission, label in LABELS.items()},
        widget=ListWidget(prefix_label=False),
        option_widget=CheckboxInput(),
    )
    requires_factor = BooleanField("Only with a second factor")
