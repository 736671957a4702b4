"""Forms for what users say about themselves, and for their preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wtforms import (
    RadioField,
    SelectField,
    SelectMultipleField,
    StringField,
    TextAreaField,
    ValidationError,
)
from wtforms.fields.choices import SelectChoice  # type: ignore[attr-defined]  # not in the stubs
from wtforms.validators import Length
from wtforms.widgets import CheckboxInput, ListWidget

from quartapp import validation
from quartapp.forms.base import Checked, Form, bidi_free, printable, tidy
from quartapp.i18n import LOCALES, timezones
from quartapp.i18n import lazy_gettext as _

LONGEST_ABOUT = 280
_REGIONS: Mapping[str, str] = {
    "Africa": _("Africa"),
    "America": _("America"),
    "Antarctica": _("Antarctica"),
    "Asia": _("Asia"),
    "Atlantic": _("Atlantic"),
    "Australia": _("Australia"),
    "Europe": _("Europe"),
    "Indian": _("Indian Ocean"),
    "Pacific": _("Pacific"),
}


class ProfileForm(Form):
    display_name = StringField(
        _("Display name"),
        description=_("Shown beside your username. Up to 50 characters."),
        filters=[tidy],
        validators=[
            # Before white space is removed, so the limit here is wider.
            Length(
                max=4 * validation.LONGEST_DISPLAY_NAME,
                message=_("A display name has at most 50 characters."),
            ),
            Checked(validation.check_display_name),
        ],
    )
    about = TextAreaField(
        _("About you"),
        description=_("A short text for your profile. Up to 280 characters."),
        filters=[tidy],
        validators=[
            Length(max=LONGEST_ABOUT, message=_("This text has at most 280 characters.")),
            printable,
            bidi_free,
        ],
    )


class TimeZone(SelectField):
    """A time zone, by region. An empty value means that of the browser.

    Any existing zone passes validation: a browser or an older version may have chosen one that is
    not offered.
    """

    def __init__(self, label: str, **options: Any) -> None:
        super().__init__(label, choices=[], validate_choice=False, **options)

    def offer(self, browsers: str | None) -> None:
        """Set the choices: the browser's zone, whose name `browsers` is if it is known, as the
        empty value; the zones by region; and UTC, and the present value if it is another zone."""
        own = _("The browser's time zone")
        if browsers:
            own = _("The browser's time zone (%(zone)s)", zone=browsers)
        choices = [SelectChoice("", own)]
        for region, names in timezones.by_region().items():
            group = str(_REGIONS[region])
            choices += [SelectChoice(name, _place(name), optgroup=group) for name in names]
        offered = {choice.value for choice in choices}
        others = ["UTC"]
        if self.data and self.data not in {*offered, *others} and timezones.find(self.data):
            others.append(self.data)
        choices += [SelectChoice(name, optgroup=str(_("Other"))) for name in others]
        self.choices = choices

    def pre_validate(self, form: Any) -> None:
        """Raise ValidationError for a text that names no zone."""
        if self.data and timezones.find(self.data) is None:
            raise ValidationError(_("Choose a time zone from the list."))


def _place(name: str) -> str:
    """Return the name of a zone without its region, such as "New York"."""
    return name.partition("/")[2].replace("_", " ").replace("/", " / ")


class PreferencesForm(Form):
    """The preferences. An empty value leaves the choice to the browser or the system."""

    language = SelectField(
        _("Language"),
        choices=[
            SelectChoice("", _("The browser's language")),
            *(SelectChoice(code, name) for code, name in LOCALES.items()),
        ],
    )
    timezone = TimeZone(_("Time zone"))
    theme = RadioField(
        _("Theme"),
        choices=[
            SelectChoice("", _("As the system")),
            SelectChoice("light", _("Light")),
            SelectChoice("dark", _("Dark")),
        ],
        default="",
    )
    emailed = SelectMultipleField(
        _("Notifications that are also sent by email"),
        choices=[],
        widget=ListWidget(prefix_label=False),
        option_widget=CheckboxInput(),
    )
