"""Second factors: setting up an authenticator app, and showing one at the sign-in."""

from wtforms import StringField
from wtforms.validators import DataRequired, Length, Regexp

from quartapp.forms.base import Form, digits, tidy


class AppCodeForm(Form):
    code = StringField(
        "Code",
        description="Six digits, from the app.",
        filters=[digits],
        validators=[
            DataRequired("Type the code that the app shows."),
            Regexp(r"\A[0-9]{6}\Z", message="The app shows six digits."),
        ],
    )


class FactorForm(Form):
    code = StringField(
        "Code",
        description="The six digits of your authenticator app, or one of your recovery codes.",
        filters=[tidy],
        validators=[
            DataRequired("Type a code."),
            Length(max=64, message="No code is that long."),
        ],
    )
