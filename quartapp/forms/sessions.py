"""Forms for signing in, for the second step and for re-entering the password, and the filter of the
active sessions."""

from wtforms import BooleanField, PasswordField, StringField
from wtforms.validators import DataRequired, InputRequired, Length, Optional

from quartapp.forms.base import Form, address_field, printable, tidy
from quartapp.i18n import lazy_gettext as _


class LoginForm(Form):
    """The ids are unique on the site: sign_in.js adds this form and FactorForm to other pages."""

    login = StringField(
        _("Username or email address"),
        id="sign-in-login",
        filters=[tidy],
        validators=[
            DataRequired(_("Enter your username or email address.")),
            Length(max=254, message=_("A username or email address has at most 254 characters.")),
            printable,
        ],
    )
    password = PasswordField(
        _("Password"),
        id="sign-in-password",
        validators=[InputRequired(_("Enter your password."))],
    )
    remember = BooleanField(_("Keep me signed in on this device"), id="sign-in-remember")


class FactorForm(Form):
    code = StringField(
        _("Code"),
        id="sign-in-code",
        description=_("The six-digit code from your authenticator app, or a recovery code."),
        filters=[tidy],
        validators=[
            DataRequired(_("Enter a code.")),
            Length(max=64, message=_("A code has at most 64 characters.")),
        ],
    )


class ConfirmForm(Form):
    password = PasswordField(_("Password"), validators=[InputRequired(_("Enter your password."))])


class ConfirmWithFactorForm(ConfirmForm):
    """Re-entering the password, for users who have a second factor."""

    factor_code = StringField(
        _("Code"),
        filters=[tidy],
        validators=[
            DataRequired(_("Enter a code.")),
            Length(max=64, message=_("A code has at most 64 characters.")),
        ],
    )


class SessionFilterForm(Form):
    """The filter of the active sessions, whose data is in the query of the address."""

    person = StringField(_("Username"), filters=[tidy], validators=[Optional()])
    ip = address_field()
    online = BooleanField(_("Only online"))
