"""The base class of all forms, and the filters and validators that they share."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import wtforms
from quart import g, request
from wtforms import ValidationError
from wtforms.validators import Length, StopValidation

from quartapp import validation
from quartapp.errors import RetryLater
from quartapp.validation import Invalid, plain_code

# Maximum length of a field without a Length validator.
LONGEST = 256


class Form(wtforms.Form):
    """A WTForms form that takes its data from the body of the request only.

    Use it as `form = await SomeForm.from_request()`, then read `form.posted` once, and answer
    with the page, `form.status` and `form.headers` if it is false or if `refuse` was called.

    Async checks belong in the route: WTForms would not await a validator, and would count the
    coroutine as a passed check. Defining one raises TypeError.
    """

    _later: RetryLater | None = None
    # Whether the data was carried through a sign-in (see routes.carried_forms). Such a form is
    # shown filled, and is not processed.
    carried: bool = False
    _refused = 422

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name.startswith("validate") and inspect.iscoroutinefunction(value):
                raise TypeError(f"{cls.__name__}.{name} is async: WTForms would not await it")

    def process(self, *args: Any, **kwargs: Any) -> None:
        """Bind the fields. A field whose text is too long gets one validator, which rejects it, so
        that no other validator spends time on the text."""
        super().process(*args, **kwargs)
        for field in self:
            most = at_most(field)
            texts = (text for text in field.raw_data or () if isinstance(text, str))
            if most and any(len(text) > most for text in texts):
                field.validators = [_too_long(field, most)]

    @classmethod
    async def from_request(cls, **kwargs: Any) -> Self:
        """Return the form with the data of a POST, otherwise with `kwargs` (see wtforms.Form)."""
        if (carried := g.get("carried")) is not None:
            form = cls(formdata=carried, **kwargs)
            form.carried = True
            return form
        sent = await request.form if request.method == "POST" else None
        return cls(formdata=sent, **kwargs)

    @property
    def posted(self) -> bool:
        """Whether the form was submitted and is valid. Runs the validators, which set errors."""
        return request.method == "POST" and not self.carried and self.validate()

    @property
    def status(self) -> int:
        """The status of the answer that shows this form.

        200 unless it was submitted; then that of `put_off` or `refuse`, or 422.
        """
        if self._later:
            return self._later.status
        return self._refused if request.method == "POST" and not self.carried else 200

    @property
    def headers(self) -> dict[str, str]:
        """The headers of that answer: Retry-After if `put_off` was called."""
        return {"Retry-After": str(self._later.retry_after)} if self._later else {}

    def put_off(self, later: RetryLater) -> None:
        """Show the error on the form, which keeps its fields. Sets `status` and `headers`."""
        self._later = later
        self.refuse(str(later))

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Call `put_off` with a RetryLater that is raised in the block, and suppress it."""
        try:
            yield
        except RetryLater as later:
            self.put_off(later)

    def refuse(self, message: str, field: str | None = None, *, status: int = 422) -> None:
        """Add an error that only the models could find, such as a username that is taken.

        The error belongs to the named field or, without one, to the form. Sets `status`.
        """
        self._refused = status
        if field is None:
            self.form_errors.append(message)
        else:
            self[field].errors = [*self[field].errors, message]


def at_most(field: wtforms.Field) -> int | None:
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
    """Return a validator that rejects every value with the message of the Length validator."""
    length = _length(field)
    message = (length and length.message) or f"Use at most {most:,} characters."

    def refuse(form: wtforms.Form, field: wtforms.Field) -> None:
        raise StopValidation(message)

    return refuse


def tidy(text: str | None) -> str | None:
    """Return the text without surrounding white space."""
    return text.strip() if text else text


def digits(text: str | None) -> str | None:
    """Return a code as `validation.plain_code` does. A text longer than 256 characters is returned
    unchanged."""
    return plain_code(text) if text and len(text) <= LONGEST else text


class Checked:
    """Validator that calls a function of `quartapp.validation` and stores what it returns."""

    def __init__(self, check: Callable[[str], str]) -> None:
        self.check = check

    def __call__(self, form: wtforms.Form, field: wtforms.Field) -> None:
        try:
            field.data = self.check(field.data or "")
        except Invalid as invalid:
            raise ValidationError(str(invalid)) from None


printable = Checked(validation.check_printable)
bidi_free = Checked(validation.check_direction)
