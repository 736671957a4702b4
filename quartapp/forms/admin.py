"""Administration: roles, and granting them."""

from collections.abc import Iterable
from typing import Protocol

from wtforms import SelectField, SelectMultipleField, StringField
from wtforms.validators import DataRequired, Length, NoneOf, Regexp
from wtforms.widgets import CheckboxInput, ListWidget

from quartapp.forms.base import Form, bidi_free, printable, tidy
from quartapp.names import NAME, NAME_RULE
from quartapp.policy import LABELS


class Named(Protocol):
    name: str


class GrantForm(Form):
    role = SelectField("Role", validators=[DataRequired("Choose a role.")])

    def offer(self, roles: Iterable[Named]) -> None:
        self.role.choices = {role.name: role.name for role in roles}


class RoleForm(Form):
    name = StringField(
        "Name",
        filters=[tidy],
        description="Letters, digits, dot, dash and underscore; up to 32.",
        validators=[
            DataRequired("A role needs a name."),
            Regexp(NAME, message=NAME_RULE),
            # Its page would be the one that makes roles.
            NoneOf(["new"], message="A role cannot have this name."),
        ],
    )
    description = StringField(
        "Description",
        filters=[tidy],
        validators=[
            Length(max=200, message="A description has at most 200 characters."),
            printable,
            bidi_free,
        ],
    )
    permissions = SelectMultipleField(
        "Permissions",
        choices={permission.value: label for permission, label in LABELS.items()},
        widget=ListWidget(prefix_label=False),
        option_widget=CheckboxInput(),
    )
