"""Forms for registering, for passwords and email addresses, and for the expiry of accounts."""

from collections.abc import Callable

from wtforms import DateField, EmailField, PasswordField, StringField, ValidationError
from wtforms.validators import DataRequired, EqualTo, InputRequired, Optional, Regexp

from quartapp import validation
from quartapp.forms.base import Checked, Form, digits, tidy
from quartapp.i18n import lazy_gettext as _
from quartapp.security.password_policy import obvious_weakness


def email_field(
    label: str = _("Email address"),
    *,
    missing: str = _("Enter your email address."),
    check: Callable[[str], str] = validation.check_email,
) -> EmailField:
    """Return a required field. Its value is trimmed, and then checked and replaced by `check`,
    whose Invalid becomes the field's error. `missing` is the message for an empty field."""
    return EmailField(
        label,
        filters=[tidy],
        validators=[
            DataRequired(missing),
            Checked(check),
        ],
    )


def username_field() -> StringField:
    """Return a required field whose value is trimmed and checked by `validation.check_username`,
    whose Invalid becomes the field's error."""
    return StringField(
        _("Username"),
        filters=[tidy],
        description=_("Up to 32 letters, digits, dots, dashes and underscores."),
        validators=[
            DataRequired(_("Enter a username.")),
            Checked(validation.check_username),
        ],
    )


def new_password_field(label: str) -> PasswordField:
    """Return a required field with a hint on good passwords. It does not apply the password policy:
    the form rejects obvious passwords, and the route asks for the score."""
    return PasswordField(
        label,
        description=_("At least 8 characters. A few unrelated words make a good password."),
        validators=[InputRequired(_("Enter a password."))],
    )


def repeated_field(label: str) -> PasswordField:
    """Return a required field that must equal the field `password`."""
    return PasswordField(
        label,
        validators=[
            InputRequired(_("Enter the password again.")),
            EqualTo("password", message=_("The passwords do not match.")),
        ],
    )


class RegisterForm(Form):
    username = username_field()
    email = email_field()
    password = new_password_field(_("Password"))
    confirm = repeated_field(_("Repeat password"))

    def validate_password(self, field: PasswordField) -> None:
        """Reject an obvious password. The username and the email address count as obvious words."""
        refuse_obvious_password(field, [self.username.data or "", self.email.data or ""])


class PasswordForm(Form):
    current_password = PasswordField(
        _("Current password"), validators=[InputRequired(_("Enter your current password."))]
    )
    password = new_password_field(_("New password"))
    confirm = repeated_field(_("Repeat new password"))

    def validate_password(self, field: PasswordField) -> None:
        """Reject an obvious new password. The username is not known here: the route checks it
        later."""
        refuse_obvious_password(field, [])


class ForgotForm(Form):
    email = email_field(check=validation.check_known_email)


class ResetForm(Form):
    password = new_password_field(_("New password"))
    confirm = repeated_field(_("Repeat new password"))

    def validate_password(self, field: PasswordField) -> None:
        """Reject an obvious password. The username is not known here: the route checks it later."""
        refuse_obvious_password(field, [])


class EmailForm(Form):
    email = email_field(_("New email address"))


class LinkForm(Form):
    """A form without fields, for pages that have only a button."""


class CodeForm(Form):
    code = StringField(
        _("Code"),
        description=_("The six-digit code from the email."),
        filters=[digits],
        validators=[
            DataRequired(_("Enter the code from the email.")),
            Regexp(r"\A[0-9]{6}\Z", message=_("The code has six digits.")),
        ],
    )


class Day(DateField):
    """A date field with an error message of its own: "Enter a date such as 2030-12-31."."""

    def process_formdata(self, valuelist: list[str]) -> None:
        """Parse the date as WTForms does, but raise the error message of this class if it is not
        valid."""
        try:
            super().process_formdata(valuelist)
        except ValueError:
            raise ValueError(_("Enter a date such as 2030-12-31.")) from None


class AccountExpiryForm(Form):
    """Setting the expiry date of an account, or removing it if the field is empty."""

    date = Day(
        _("Account expiry"),
        description=_("The account is disabled at the end of this date (UTC)."),
        validators=[Optional()],
    )


def refuse_obvious_password(field: PasswordField, context: list[str]) -> None:
    """Raise ValidationError, with the reason, for a password that `obvious_weakness` rejects
    without scoring it.

    `context` are words that the password must not consist of, such as the username. The route
    applies the whole policy after it has counted the attempt.
    """
    weakness = obvious_weakness(field.data or "", context=context)
    if weakness:
        raise ValidationError(weakness)
