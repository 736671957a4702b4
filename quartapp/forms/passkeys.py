"""Passkeys: adding, naming and showing them. A script fills in what the browser has to say."""

from wtforms import BooleanField, HiddenField, StringField
from wtforms.validators import DataRequired, Length

from quartapp.forms.base import Form, bidi_free, printable, tidy

# What a browser has to say of a passkey, with a certificate of its maker, in base64.
LONGEST_CREDENTIAL = 32 * 1024


def name_field() -> StringField:
    return StringField(
        "Name",
        filters=[tidy],
        description="By which you tell it from your others.",
        validators=[
            DataRequired("A passkey needs a name."),
            Length(max=60, message="A name has at most 60 characters."),
            printable,
            bidi_free,
        ],
    )


class AddForm(Form):
    name = name_field()
    credential = HiddenField(validators=[Length(max=LONGEST_CREDENTIAL)])


class RenameForm(Form):
    name = name_field()


class ShowForm(Form):
    credential = HiddenField(validators=[Length(max=LONGEST_CREDENTIAL)])
    remember = BooleanField()
    step = BooleanField()
