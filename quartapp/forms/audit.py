"""The filter of the audit log."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any

from wtforms import SelectField, StringField
from wtforms.validators import Length, Optional

from quartapp.forms.base import Checked, Form, address_field, printable, tidy
from quartapp.i18n import gettext
from quartapp.i18n import lazy_gettext as _
from quartapp.validation import Invalid

# What `until` includes: the rest of the day, minute or second that is given.
_PRECISIONS = (
    (re.compile(r"\d{4}-\d\d-\d\d"), timedelta(days=1)),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d([zZ]|[+-]\d\d:?\d\d)?"), timedelta(minutes=1)),
)
_EARLIEST, _LATEST = datetime(1971, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


def parse_moment(text: str, zone: tzinfo, *, end: bool = False) -> datetime:
    """Return the time that a text in ISO 8601 gives, in UTC. Without an offset, it is in this zone.

    A date is its first moment. With `end`, the result is the moment after the day, minute or second
    that is given. Raises ValueError for other texts, and for times before 1971 or after 2099.
    """
    if _PRECISIONS[0][0].fullmatch(text):
        given = datetime.combine(date.fromisoformat(text), time(), zone)
    else:
        given = datetime.fromisoformat(text)
        given = given if given.tzinfo else given.replace(tzinfo=zone)
    # Calendar days, which are not always 24 hours long, are added before the conversion.
    if end:
        steps = (step for pattern, step in _PRECISIONS if pattern.fullmatch(text))
        given += next(steps, timedelta(seconds=1))
    try:
        given = given.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(text) from error
    if not _EARLIEST <= given <= _LATEST:
        raise ValueError(text)
    return given


def check_moment(text: str) -> str:
    """Return the text if `parse_moment` reads it. Raises Invalid."""
    try:
        parse_moment(text, UTC)
    except ValueError:
        example = "2026-03-01T14:05"
        message = gettext("Enter a date and time, such as %(example)s.", example=example)
        raise Invalid(message) from None
    return text


def _moment_field(label: Any) -> StringField:
    return StringField(
        label, filters=[tidy], validators=[Optional(), Length(max=40), Checked(check_moment)]
    )


class EventFilterForm(Form):
    """The filter of the audit log, whose data is in the query of the address."""

    person = StringField(_("Person"), filters=[tidy], validators=[Optional(), printable])
    kind = SelectField(_("Activity"), validate_choice=False, default="")
    ip = address_field()
    since = _moment_field(_("From"))
    until = _moment_field(_("Until"))
    q = StringField(
        _("Search in details"),
        filters=[tidy],
        validators=[Optional(), Length(max=100), printable],
    )

    def offer(self, kinds: dict[str, str]) -> None:
        """Offer these kinds of activity, given by their audit names, in the order of their labels.

        A selected kind that is not among them is offered too: it may be of a newer version.
        """
        if self.kind.data and self.kind.data not in kinds:
            kinds = {**kinds, self.kind.data: self.kind.data}
        labels = sorted(kinds.items(), key=lambda each: each[1].casefold())
        choices: Any = [("", _("All")), *labels]
        self.kind.choices = choices

    def between(self, zone: tzinfo) -> dict[str, datetime | None]:
        """Return `since` and `until` of a valid form as times in UTC, None for an empty field. A
        time without an offset is in the zone; `until` is the moment after what was entered."""
        since, until = self.since.data, self.until.data
        return {
            "since": parse_moment(since, zone) if since else None,
            "until": parse_moment(until, zone, end=True) if until else None,
        }


def local_value(zone: tzinfo) -> Callable[[StringField], str | None]:
    """Return a function that gives the value of a time for a field of the type `datetime-local`:
    the time in the zone, an empty text for an empty field, and None for a field with an error."""

    def value(field: StringField) -> str | None:
        if field.errors:
            return None
        if not field.data:
            return ""
        return parse_moment(field.data, zone).astimezone(zone).strftime("%Y-%m-%dT%H:%M")

    return value
