"""The base class of all forms, and the filters and validators that they share."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address
from typing import Any, Self

import wtforms
from quart import g, request
from wtforms import ValidationError
from wtforms.form import BaseForm
from wtforms.i18n import get_translations
from wtforms.meta import DefaultMeta
from wtforms.validators import Length, Optional, StopValidation

from quartapp import validation
from quartapp.errors import RetryLater
from quartapp.i18n import PSEUDO, current_locale
from quartapp.i18n import lazy_gettext as _
from quartapp.i18n.catalogs import load
from quartapp.i18n.numbers import format_number
from quartapp.validation import Invalid, plain_code

# Maximum length of a field without a Length validator.
LONGEST = 256


class Form(wtforms.Form):
    """A WTForms form that takes its data from the body of the request, never from its query.

    Use it as `form = await SomeForm.from_request()`, then read `form.posted` once, and answer
    with the page, `form.status` and `form.headers` if it is false or if `refuse` was called.

    Async checks belong in the route, which passes them to `passes` instead of reading `posted`:
    WTForms would not await a validator, and would count the coroutine as a passed check. Defining
    one raises TypeError.
    """

    _retry_later: RetryLater | None = None
    # Whether the data was carried through a sign-in (see routes.carried_forms). Such a form is
    # shown filled: `posted` is false and `status` is 200.
    carried: bool = False
    _refused = 422

    class Meta(DefaultMeta):
        def get_translations(self, form: BaseForm) -> Any:
            """Return the texts of WTForms itself in the current language."""
            return _wtforms_texts(current_locale())

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise TypeError if a method whose name starts with `validate` is a coroutine function."""
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name.startswith("validate") and inspect.iscoroutinefunction(value):
                raise TypeError(f"{cls.__name__}.{name} is async: WTForms would not await it")

    def process(self, *args: Any, **kwargs: Any) -> None:
        """Bind the data to the fields, as WTForms does.

        The validators of a field whose text is longer than `max_length` are replaced by one that
        rejects it, so that no other validator spends time on the text.
        """
        super().process(*args, **kwargs)
        for field in self:
            most = max_length(field)
            texts = (text for text in field.raw_data or () if isinstance(text, str))
            if most and any(len(text) > most for text in texts):
                field.validators = [_too_long(field, most)]

    @classmethod
    async def from_request(cls, **kwargs: Any) -> Self:
        """Return the form with the data that was carried through a sign-in, if there is any, or
        that of a POST; otherwise with the initial values `kwargs` (see wtforms.Form)."""
        if (carried := g.get("carried")) is not None:
            form = cls(formdata=carried, **kwargs)
            form.carried = True
            return form
        sent = await request.form if request.method == "POST" else None
        return cls(formdata=sent, **kwargs)

    @property
    def sent(self) -> bool:
        """Whether the request is a POST of this form, valid or not."""
        return request.method == "POST" and not self.carried

    @property
    def posted(self) -> bool:
        """Whether the request is a POST and the form is valid. Runs the validators of a POST, which
        set errors and can replace data."""
        return self.sent and self.validate()

    async def passes(self, *checks: Callable[[Self], Awaitable[object]]) -> bool:
        """Return whether the request is a POST and the form has no error after its validators and
        all of these checks.

        Every check is awaited, in order, also if the validators or earlier checks have found
        errors, so that the user sees all errors at once. A check adds its errors with `refuse`, and
        looks only at fields without errors (`valid_data`). What a check raises is not caught.
        Without a POST nothing is checked.
        """
        if not self.sent:
            return False
        self.validate()
        for check in checks:
            await check(self)
        return not self.errors

    def valid_data(self, field: str) -> Any:
        """Return the data of the field, or None if it has an error."""
        return None if self[field].errors else self[field].data

    @property
    def status(self) -> int:
        """The status of the answer that shows this form.

        That of the error passed to `set_retry_later`, if any. Else for a POST the status passed to
        `refuse`, if all errors have that one, or 422. Else 200.
        """
        if self._retry_later:
            return self._retry_later.status
        return self._refused if self.sent else 200

    @property
    def headers(self) -> dict[str, str]:
        """The headers of that answer: Retry-After if `set_retry_later` was called, else none."""
        error = self._retry_later
        return {"Retry-After": str(error.retry_after)} if error else {}

    def set_retry_later(self, error: RetryLater) -> None:
        """Add the text of the error to the errors of the form, and set `status` and `headers` to
        those of the error."""
        self._retry_later = error
        self.refuse(str(error))

    @contextmanager
    def catch_retry_later(self) -> Iterator[None]:
        """Suppress a RetryLater that is raised in the block, and pass it to `set_retry_later`."""
        try:
            yield
        except RetryLater as error:
            self.set_retry_later(error)

    def refuse(self, message: str, field: str | None = None, *, status: int = 422) -> None:
        """Add an error that only the models could find, such as a username that is taken.

        The error belongs to the named field or, without one, to the form. Raises nothing. The
        answer to a POST then has this `status`, or 422 if another error has another one.
        """
        self._refused = status if status == self._refused or not self.errors else 422
        if field is None:
            self.form_errors.append(message)
        else:
            self[field].errors = [*self[field].errors, message]


@cache
def _wtforms_texts(locale: str) -> Any:
    """Return the texts of WTForms in the language. It has a catalog for each of ours."""
    return load(PSEUDO) if locale == PSEUDO else get_translations([locale])


def max_length(field: wtforms.Field) -> int | None:
    """Return the maximum length of the field in characters: that of its Length validator, or 256.

    None for passwords, whose length the password policy limits.
    """
    if isinstance(field, wtforms.PasswordField):
        return None
    length = _length(field)
    return length.max if length else LONGEST


def _length(field: wtforms.Field) -> Length | None:
    return next((check for check in field.validators if isinstance(check, Length)), None)


def _too_long(field: wtforms.Field, most: int) -> Callable[[wtforms.Form, wtforms.Field], None]:
    """Return a validator that rejects every value with StopValidation. Its message is that of the
    field's Length validator or, without one, "Use at most ... characters."."""
    length = _length(field)
    number = format_number(most)
    message = (length and length.message) or _("Use at most %(num)s characters.", num=number)

    def refuse(form: wtforms.Form, field: wtforms.Field) -> None:
        raise StopValidation(message)

    return refuse


def tidy(text: str | None) -> str | None:
    """Return the text without surrounding white space."""
    return text.strip() if text else text


def digits(text: str | None) -> str | None:
    """Return a code without spaces, dashes and invisible characters, and with ASCII digits
    (`validation.plain_code`). A text longer than 256 characters is returned unchanged."""
    return plain_code(text) if text and len(text) <= LONGEST else text


class Checked:
    """Validator that calls a function of `quartapp.validation` with the field's text.

    Stores what it returns as the field's data. An Invalid that it raises is the field's error.
    """

    def __init__(self, check: Callable[[str], str]) -> None:
        self.check = check

    def __call__(self, form: wtforms.Form, field: wtforms.Field) -> None:
        """Replace the field's data by the result of the check. Raises ValidationError with the text
        of an Invalid."""
        try:
            field.data = self.check(field.data or "")
        except Invalid as invalid:
            raise ValidationError(str(invalid)) from None


def check_address(text: str) -> str:
    """Return an IP address in its canonical form. Raises Invalid."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise Invalid(_("Enter an IP address, such as 192.0.2.1.")) from None


def address_field() -> wtforms.StringField:
    """Return the field of a filter by IP address."""
    checks = [Optional(), Checked(check_address)]
    return wtforms.StringField(_("IP address"), filters=[tidy], validators=checks)


printable = Checked(validation.check_printable)
bidi_free = Checked(validation.check_direction)
