"""Forms for registering, signing in, re-entering the password, and changing password or address."""

from collections.abc import Callable

from wtforms import BooleanField, EmailField, PasswordField, StringField, ValidationError
from wtforms.validators import DataRequired, EqualTo, InputRequired, Length, Regexp

from quartapp import validation
from quartapp.forms.base import Checked, Form, digits, printable, tidy
from quartapp.security.password_policy import obvious_weakness


def email_field(
    label: str = "Email address",
    *,
    whose: str = "your",
    check: Callable[[str], str] = validation.check_email,
) -> EmailField:
    return EmailField(
        label,
        filters=[tidy],
        validators=[
            DataRequired(f"Enter {whose} email address."),
            Checked(check),
        ],
    )


def username_field() -> StringField:
    return StringField(
        "Username",
        filters=[tidy],
        description="Up to 32 letters, digits, dots, dashes and underscores.",
        validators=[
            DataRequired("Enter a username."),
            Checked(validation.check_username),
        ],
    )


def new_password_field(label: str) -> PasswordField:
    return PasswordField(
        label,
        description="At least 8 characters. A few unrelated words make a good password.",
        validators=[InputRequired("Enter a password.")],
    )


def repeated_field(label: str) -> PasswordField:
    return PasswordField(
        label,
        validators=[
            InputRequired("Enter the password again."),
            EqualTo("password", message="The passwords do not match."),
        ],
    )


class RegisterForm(Form):
    username = username_field()
    email = email_field()
    password = new_password_field("Password")
    confirm = repeated_field("Repeat password")

    def validate_password(self, field: PasswordField) -> None:
        _not_obvious(field, [self.username.data or "", self.email.data or ""])


class InvitedForm(Form):
    """Accepting an invitation. Set `email` to the invited address before validating."""

    username = username_field()
    password = new_password_field("Password")
    confirm = repeated_field("Repeat password")
    email = ""

    def validate_password(self, field: PasswordField) -> None:
        _not_obvious(field, [self.username.data or "", self.email])


class LoginForm(Form):
    login = StringField(
        "Username or email address",
        filters=[tidy],
        validators=[
            DataRequired("Enter your username or email address."),
            Length(max=254, message="A username or email address has at most 254 characters."),
            printable,
        ],
    )
    password = PasswordField("Password", validators=[InputRequired("Enter your password.")])
    remember = BooleanField("Keep me signed in on this device")


class ConfirmForm(Form):
    password = PasswordField("Password", validators=[InputRequired("Enter your password.")])


class ConfirmWithFactorForm(ConfirmForm):
    """Re-entering the password, for users who have a second factor."""

    factor_code = StringField(
        "Code",
        filters=[tidy],
        validators=[
            DataRequired("Enter a code."),
            Length(max=64, message="A code has at most 64 characters."),
        ],
    )


class PasswordForm(Form):
    current_password = PasswordField(
        "Current password", validators=[InputRequired("Enter your current password.")]
    )
    password = new_password_field("New password")
    confirm = repeated_field("Repeat new password")

    def validate_password(self, field: PasswordField) -> None:
        _not_obvious(field, [])


class ForgotForm(Form):
    email = email_field(check=validation.check_known_email)


class ResetForm(Form):
    password = new_password_field("New password")
    confirm = repeated_field("Repeat new password")

    def validate_password(self, field: PasswordField) -> None:
        _not_obvious(field, [])


class EmailForm(Form):
    email = email_field("New email address")


class LinkForm(Form):
    """A form without fields, for pages that have only a button."""


class CodeForm(Form):
    code = StringField(
        "Code",
        description="The six-digit code from the email.",
        filters=[digits],
        validators=[
            DataRequired("Enter the code from the email."),
            Regexp(r"\A[0-9]{6}\Z", message="The code has six digits."),
        ],
    )


def _not_obvious(field: PasswordField, context: list[str]) -> None:
    """Raise ValidationError for a password that can be rejected without scoring it.

    The route applies the whole policy after it has counted the attempt.
    """
    weakness = obvious_weakness(field.data or "", context=context)
    if weakness:
        raise ValidationError(weakness)
