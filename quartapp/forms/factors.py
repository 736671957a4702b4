"""Forms for setting up an authenticator app and for the second step of a sign-in."""

from wtforms import StringField
from wtforms.validators import DataRequired, Length, Regexp

from quartapp.forms.base import Form, digits, tidy


class AppCodeForm(Form):
    code = StringField(
        "Code",
        description="The six-digit code from the app.",
        filters=[digits],
        validators=[
            DataRequired("Enter the code that the app shows."),
            Regexp(r"\A[0-9]{6}\Z", message="The code has six digits."),
        ],
    )


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
