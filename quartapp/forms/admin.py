"""Administration: roles, granting them, inviting people, and their last days."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from wtforms import (
    BooleanField,
    DateField,
    SelectField,
    SelectMultipleField,
    StringField,
    ValidationError,
)
from wtforms.validators import DataRequired, Optional
from wtforms.widgets import CheckboxInput, ListWidget

from quartapp import validation
from quartapp.forms.accounts import email_field
from quartapp.forms.base import Checked, Form, tidy
from quartapp.policy import LABELS, MEMBER


class Named(Protocol):
    name: str

    @property
    def permissions(self) -> Collection[str]: ...

    @property
    def manages(self) -> bool: ...


# Says which of the permissions the user of the form does not hold.
Lacks = Callable[[Collection[str]], Collection[str]]


class RoleChoice(SelectField):
    """A list of roles. It offers those that the user may give, and accepts every existing one: the
    domain refuses the others, and names the permission that is missing."""

    def __init__(self, label: str, **options: Any) -> None:
        super().__init__(label, choices=[], validate_choice=False, **options)
        self.existing: set[str] = set()

    def offer(
        self, roles: Iterable[Named], *, lacks: Lacks, first: Mapping[str, str], prefix: str = ""
    ) -> None:
        """Fills the list with the `first` choices, and then the roles that the user may give."""
        roles = list(roles)
        self.existing = {name.casefold() for name in (*first, *(role.name for role in roles))}
        # The style sheet asks before a role with management permissions is granted.
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
        if self.data and self.data.casefold() not in self.existing:
            raise ValidationError("There is no such role.")


class GrantForm(Form):
    role = RoleChoice("Role", default="", validators=[DataRequired("Choose a role.")])

    def offer(self, roles: Iterable[Named], *, lacks: Lacks) -> None:
        self.role.offer(roles, lacks=lacks, first={"": "Choose a role"})


class InviteForm(Form):
    """Everybody becomes a member, so that this role, or none, is the first choice."""

    email = email_field(whose="an")
    role = RoleChoice("Role", default=MEMBER, validators=[Optional()])

    def offer(self, roles: Iterable[Named], *, lacks: Lacks) -> None:
        others = [role for role in roles if role.name != MEMBER]
        self.role.offer(others, lacks=lacks, first={MEMBER: MEMBER}, prefix=f"{MEMBER} and ")

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
    requires_factor = BooleanField("Only with a second factor")
