"""Forms for authenticator apps and passkeys. passkeys.js fills in the `credential` fields."""

from wtforms import BooleanField, HiddenField, StringField
from wtforms.validators import DataRequired, Length, Regexp

from quartapp.forms.base import Form, bidi_free, digits, printable, tidy
from quartapp.i18n import lazy_gettext as _

# Characters of a credential as JSON; an attestation with certificates is the longest part.
LONGEST_CREDENTIAL = 32 * 1024


class AppCodeForm(Form):
    code = StringField(
        _("Code"),
        description=_("The six-digit code from the app."),
        filters=[digits],
        validators=[
            DataRequired(_("Enter the code that the app shows.")),
            Regexp(r"\A[0-9]{6}\Z", message=_("The code has six digits.")),
        ],
    )


def name_field() -> StringField:
    """Return a required field for the name of a passkey: trimmed, printable, at most 60 characters,
    without characters that change the direction of text."""
    return StringField(
        _("Name"),
        filters=[tidy],
        description=_("For example, the device on which you store the passkey."),
        validators=[
            DataRequired(_("Enter a name.")),
            Length(max=60, message=_("A name has at most 60 characters.")),
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
    """Signing in or re-authenticating with a passkey."""

    credential = HiddenField(validators=[Length(max=LONGEST_CREDENTIAL)])
    remember = BooleanField()
    step = BooleanField()
