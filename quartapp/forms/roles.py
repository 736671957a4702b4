"""Forms for creating, editing and granting roles."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from wtforms import (
    BooleanField,
    IntegerField,
    SelectField,
    SelectMultipleField,
    StringField,
    ValidationError,
)
from wtforms.validators import DataRequired, Optional
from wtforms.widgets import CheckboxInput, HiddenInput, ListWidget

from quartapp import validation
from quartapp.forms.base import Checked, Form, tidy
from quartapp.policy import LABELS


class Named(Protocol):
    """What the forms read of a role. `manages` is whether it has a management permission."""

    name: str

    @property
    def permissions(self) -> Collection[str]: ...

    @property
    def manages(self) -> bool: ...


# Returns those of the permissions that the user of the form does not have.
Lacks = Callable[[Collection[str]], Collection[str]]


class RoleChoice(SelectField):
    """A list of roles that offers those which the user may grant.

    Any existing role passes validation, also one that is not offered: the models refuse to grant
    it with an error that names the missing permission.
    """

    def __init__(self, label: str, **options: Any) -> None:
        super().__init__(label, choices=[], validate_choice=False, **options)
        self.existing: set[str] = set()

    def offer(
        self, roles: Iterable[Named], *, lacks: Lacks, first: Mapping[str, str], prefix: str = ""
    ) -> None:
        """Set the choices: `first` (value to label), then the roles of which the user lacks no
        permission, each labelled with `prefix` and its name."""
        roles = list(roles)
        self.existing = {name.casefold() for name in (*first, *(role.name for role in roles))}
        # app.css asks for a confirmation before a role with management permissions is granted.
        marks = {True: {"data-manages": True}, False: {}}
        self.choices = [
            *((name, label, {}) for name, label in first.items()),
            *(
                (role.name, f"{prefix}{role.name}", marks[role.manages])
                for role in roles
                if not lacks(role.permissions)
            ),
        ]

    def pre_validate(self, form: Any) -> None:
        """Raise ValidationError if the role is not one of those passed to `offer`. Ignores case."""
        if self.data and self.data.casefold() not in self.existing:
            raise ValidationError("This role does not exist.")


class GrantForm(Form):
    role = RoleChoice("Role", default="", validators=[DataRequired("Select a role.")])

    def offer(self, roles: Iterable[Named], *, lacks: Lacks) -> None:
        """Set the choices: an empty one labelled "Select a role", then the roles of which the user
        lacks no permission."""
        self.role.offer(roles, lacks=lacks, first={"": "Select a role"})


class RoleForm(Form):
    """`version` is that of the role when the page was rendered, so that an edit does not undo one
    that somebody else has made in the meantime."""

    name = StringField(
        "Name",
        filters=[tidy],
        description="Up to 32 letters, digits, dots, dashes and underscores.",
        validators=[
            DataRequired("Enter a name."),
            Checked(validation.check_role_name),
        ],
    )
    description = StringField(
        "Description",
        filters=[tidy],
        validators=[Checked(validation.check_description)],
    )
    permissions = SelectMultipleField(
        "Permissions",
        choices={permission.value: label for permission, label in LABELS.items()},
        widget=ListWidget(prefix_label=False),
        option_widget=CheckboxInput(),
    )
    requires_factor = BooleanField("Require a second factor")
    version = IntegerField(widget=HiddenInput(), validators=[Optional()])
