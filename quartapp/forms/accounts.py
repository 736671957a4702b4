"""Coming in: registering, signing in, confirming who one is, changing the password."""

from wtforms import BooleanField, EmailField, PasswordField, StringField, ValidationError
from wtforms.validators import DataRequired, EqualTo, InputRequired, Length, Regexp

from quartapp import passwords
from quartapp.forms.base import Form, bidi_free, printable, tidy
from quartapp.names import EMAIL, EMAIL_RULE, NAME, NAME_RULE


class RegisterForm(Form):
    username = StringField(
        "Username",
        filters=[tidy],
        description="Letters, digits, dot, dash and underscore; up to 32.",
        validators=[
            DataRequired("Choose a username."),
            Regexp(NAME, message=NAME_RULE),
        ],
    )
    email = EmailField(
        "E-mail address",
        filters=[tidy],
        validators=[
            DataRequired("Enter your e-mail address."),
            Length(max=254, message="An address has at most 254 characters."),
            Regexp(EMAIL, message=EMAIL_RULE),
            printable,
            bidi_free,
        ],
    )
    password = PasswordField(
        "Password",
        description="At least 8 characters. A few unrelated words make a good one.",
        validators=[InputRequired("Choose a password.")],
    )
    confirm = PasswordField(
        "Password again",
        validators=[
            InputRequired("Repeat the password."),
            EqualTo("password", message="The two passwords differ."),
        ],
    )

    def validate_password(self, field: PasswordField) -> None:
        _strong(field, [self.username.data or "", self.email.data or ""])


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


class PasswordForm(Form):
    current_password = PasswordField(
        "Current password", validators=[InputRequired("Enter your current password.")]
    )
    password = PasswordField(
        "New password",
        description="At least 8 characters. A few unrelated words make a good one.",
        validators=[InputRequired("Choose a new password.")],
    )
    confirm = PasswordField(
        "New password again",
        validators=[
            InputRequired("Repeat the new password."),
            EqualTo("password", message="The two passwords differ."),
        ],
    )

    def validate_password(self, field: PasswordField) -> None:
        _strong(field, [])


def _strong(field: PasswordField, context: list[str]) -> None:
    weakness = passwords.weakness(field.data or "", context=context)
    if weakness:
        raise ValidationError(weakness)
