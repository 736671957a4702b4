"""Forms for creating, editing and granting roles."""

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

from wtforms import (
    BooleanField,
    IntegerField,
    SelectField,
    SelectMultipleField,
    StringField,
    TextAreaField,
    ValidationError,
)
from wtforms.validators import DataRequired, Length, Optional
from wtforms.widgets import CheckboxInput, HiddenInput, ListWidget

from quartapp import clock, validation
from quartapp.forms.base import Checked, Form, bidi_free, printable, tidy
from quartapp.i18n import lazy_gettext as _
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
        self,
        roles: Iterable[Named],
        *,
        lacks: Lacks,
        first: Mapping[str, str],
        label: str = "%(name)s",
    ) -> None:
        """Set the choices: `first` (value to label), then the roles of which the user lacks no
        permission, each with this label, in which `%(name)s` is its name."""
        roles = list(roles)
        self.existing = {name.casefold() for name in (*first, *(role.name for role in roles))}
        # app.css asks for a confirmation before a role with management permissions is granted.
        marks = {True: {"data-manages": True}, False: {}}
        self.choices = [
            *((name, label, {}) for name, label in first.items()),
            *(
                (role.name, label % {"name": role.name}, marks[role.manages])
                for role in roles
                if not lacks(role.permissions)
            ),
        ]

    def pre_validate(self, form: Any) -> None:
        """Raise ValidationError if the role is not one of those passed to `offer`. Ignores case."""
        if self.data and self.data.casefold() not in self.existing:
            raise ValidationError(_("This role does not exist."))


class EndField(StringField):
    """The time until which a role is granted, as a duration or a time; empty for no end.

    After the validation, `moment` is that time, or None.
    """

    moment: datetime | None = None

    def __init__(self, label: Any, **options: Any) -> None:
        hint = _("A duration such as 2h or 7d, or a time (UTC) such as 2030-12-31 14:00.")
        super().__init__(label, description=hint, filters=[tidy], **options)

    def pre_validate(self, form: Any) -> None:
        """Set `moment`; an empty text leaves it None. Raises ValidationError if the text is neither
        a duration nor a time, and for a time that is less than a minute or more than ten years from
        now (`validation.check_grant_end`)."""
        if not self.data:
            return
        try:
            self.moment = validation.check_grant_end(self.data, clock.now())
        except validation.Invalid as invalid:
            raise ValidationError(str(invalid)) from None


class GrantForm(Form):
    role = RoleChoice(_("Role"), default="", validators=[DataRequired(_("Select a role."))])
    until = EndField(_("Until"))

    def offer(self, roles: Iterable[Named], *, lacks: Lacks) -> None:
        """Set the choices: an empty one labelled "Select a role", then the roles of which the user
        lacks no permission."""
        self.role.offer(roles, lacks=lacks, first={"": _("Select a role")})


def _reason_checks(*first: Any) -> list[Any]:
    """Return the validators of a reason: those given, a maximum length, and printable text."""
    length = Length(max=500, message=_("A reason has at most 500 characters."))
    return [*first, length, printable, bidi_free]


class RoleRequestForm(Form):
    """Asking for a role."""

    role = RoleChoice(_("Role"), default="", validators=[DataRequired(_("Select a role."))])
    reason = TextAreaField(
        _("Reason"),
        description=_("What do you need the role for, and for how long?"),
        filters=[tidy],
        validators=_reason_checks(DataRequired(_("Enter a reason."))),
    )

    def offer(self, roles: Iterable[Named]) -> None:
        """Set the choices: an empty one labelled "Select a role", then these roles."""
        self.role.offer(roles, lacks=lambda permissions: (), first={"": str(_("Select a role"))})


class GrantRequestForm(Form):
    """Granting a request for a role."""

    until = EndField(_("Until"))


class DeclineForm(Form):
    """Declining a request for a role."""

    reason = StringField(_("Reason"), filters=[tidy], validators=_reason_checks())


def _requestable_choices() -> list[tuple[str, str]]:
    """Return the choices for whether a role can be requested, in the current language."""
    return [
        ("default", str(_("Allowed, unless the role has management permissions"))),
        ("yes", str(_("Allowed"))),
        ("no", str(_("Not allowed"))),
    ]


class RoleForm(Form):
    """`version` is that of the role when the page was rendered, so that an edit does not undo one
    that somebody else has made in the meantime."""

    name = StringField(
        _("Name"),
        filters=[tidy],
        description=_("Up to 32 letters, digits, dots, dashes and underscores."),
        validators=[
            DataRequired(_("Enter a name.")),
            Checked(validation.check_role_name),
        ],
    )
    description = StringField(
        _("Description"),
        filters=[tidy],
        validators=[Checked(validation.check_description)],
    )
    permissions = SelectMultipleField(
        _("Permissions"),
        choices=lambda: {permission.value: str(label) for permission, label in LABELS.items()},
        widget=ListWidget(prefix_label=False),
        option_widget=CheckboxInput(),
    )
    requires_factor = BooleanField(_("Require a second factor"))
    version = IntegerField(widget=HiddenInput(), validators=[Optional()])
    # Without a value, as sent by a page of an earlier version, it stays as it is.
    requestable = SelectField(
        _("Requests"),
        choices=_requestable_choices,
        description=_(
            "Whether users can ask for this role. An administrator decides about each request."
        ),
        validate_choice=False,
    )
