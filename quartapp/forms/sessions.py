"""Forms for signing in, for the second step, and for re-entering the password."""

from wtforms import BooleanField, PasswordField, StringField
from wtforms.validators import DataRequired, InputRequired, Length

from quartapp.forms.base import Form, printable, tidy


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


class FactorForm(Form):
    code = StringField(
        "Code",
        description="The six-digit code from your authenticator app, or a recovery code.",
        filters=[tidy],
        validators=[
            DataRequired("Enter a code."),
            Length(max=64, message="A code has at most 64 characters."),
        ],
    )


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
