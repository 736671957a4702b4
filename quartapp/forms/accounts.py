"""Coming in: registering, signing in, confirming who one is, changing the password."""

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
        description="Letters, digits, dot, dash and underscore; up to 32.",
        validators=[
            DataRequired("Choose a username."),
            Checked(validation.check_username),
        ],
    )


def new_password_field(label: str) -> PasswordField:
    return PasswordField(
        label,
        description="At least 8 characters. A few unrelated words make a good one.",
        validators=[InputRequired("Choose a password.")],
    )


def repeated_field(label: str) -> PasswordField:
    return PasswordField(
        label,
        validators=[
            InputRequired("Repeat the password."),
            EqualTo("password", message="The two passwords differ."),
        ],
    )


class RegisterForm(Form):
    username = username_field()
    email = email_field()
    password = new_password_field("Password")
    confirm = repeated_field("Password again")

    def validate_password(self, field: PasswordField) -> None:
        _not_obvious(field, [self.username.data or "", self.email.data or ""])


class InvitedForm(Form):
    """Registering for an address that is known. Set `email` first."""

    username = username_field()
    password = new_password_field("Password")
    confirm = repeated_field("Password again")
    email = ""

    def validate_password(self, field: PasswordField) -> None:
        _not_obvious(field, [self.username.data or "", self.email])


class LoginForm(Form):
    login = StringField(
        "Username or e-mail address",
        filters=[tidy],
        validators=[
            DataRequired("Enter your username or e-mail address."),
            Length(max=254, message="This is too long for a username or an address."),
            printable,
        ],
    )
    password = PasswordField("Password", validators=[InputRequired("Enter your password.")])
    remember = BooleanField("Keep me signed in on this device")


class ConfirmForm(Form):
    password = PasswordField("Password", validators=[InputRequired("Enter your password.")])


class ConfirmWithFactorForm(ConfirmForm):
    """For users who have a second factor."""

    factor_code = StringField(
        "Code",
        filters=[tidy],
        validators=[
            DataRequired("Enter a code, too."),
            Length(max=64, message="No code is that long."),
        ],
    )


class PasswordForm(Form):
    current_password = PasswordField(
        "Current password", validators=[InputRequired("Enter your current password.")]
    )
    password = new_password_field("New password")
    confirm = repeated_field("New password again")

    def validate_password(self, field: PasswordField) -> None:
        _not_obvious(field, [])


class ForgotForm(Form):
    email = email_field(check=validation.check_known_email)


class ResetForm(Form):
    password = new_password_field("New password")
    confirm = repeated_field("New password again")

    def validate_password(self, field: PasswordField) -> None:
        _not_obvious(field, [])


class EmailForm(Form):
    email = email_field("New e-mail address")


class LinkForm(Form):
    """A button."""


class CodeForm(Form):
    code = StringField(
        "Code",
        description="Six digits, from the email.",
        filters=[digits],
        validators=[
            DataRequired("Type the code that we sent."),
            Regexp(r"\A[0-9]{6}\Z", message="A code has six digits."),
        ],
    )


def _not_obvious(field: PasswordField, context: list[str]) -> None:
    """What costs nothing to see. The route asks the whole policy, after it has counted."""
    weakness = obvious_weakness(field.data or "", context=context)
    if weakness:
        raise ValidationError(weakness)
