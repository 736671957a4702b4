"""The base of all forms: filled from the request, with errors beside their fields."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import wtforms
from quart import g, request
from wtforms import ValidationError
from wtforms.validators import Length, StopValidation

from quartapp import validation
from quartapp.errors import TryLater
from quartapp.validation import Invalid, plain_code

# Of a field that does not say how much it takes.
LONGEST = 256


class Form(wtforms.Form):
    """A WTForms form that is filled from the request's body and nothing else.

    Call `fails` once. An async check belongs in the route: WTForms would take a coroutine for
    a passed check, so one is refused when the class is made.
    """

    _later: TryLater | None = None
    # Whether the fields were carried through a sign-in: they are shown, and nothing is done.
    carried: bool = False
    _refused = 422

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name.startswith("validate") and inspect.iscoroutinefunction(value):
                raise TypeError(f"{cls.__name__}.{name} is async: WTForms would not await it")

    def process(self, *args: Any, **kwargs: Any) -> None:
        """Bind the fields, and let no check look at a text that is longer than its field takes."""
        super().process(*args, **kwargs)
        for field in self:
            most = at_most(field)
            texts = (text for text in field.raw_data or () if isinstance(text, str))
            if most and any(len(text) > most for text in texts):
                field.validators = [_too_long(field, most)]

    @classmethod
    async def from_request(cls, **kwargs: Any) -> Self:
        """With a POST's fields, or with the given data for the first showing."""
        if (carried := g.get("carried")) is not None:
            form = cls(formdata=carried, **kwargs)
            form.carried = True
            return form
        sent = await request.form if request.method == "POST" else None
        return cls(formdata=sent, **kwargs)

    @property
    def posted(self) -> bool:
        """Whether this is an answer to be judged, and it is in order."""
        return request.method == "POST" and not self.carried and self.validate()

    @property
    def status(self) -> int:
        """Of the answer that shows the form: 422, or what `refuse` was told, when it comes back
        with its errors."""
        if self._later:
            return self._later.status
        return self._refused if request.method == "POST" and not self.carried else 200

    @property
    def headers(self) -> dict[str, str]:
        """Of that answer: when to come back, if `put_off` has something to say."""
        return {"Retry-After": str(self._later.retry_after)} if self._later else {}

    def put_off(self, later: TryLater) -> None:
        """Says in the form to come back later, so that nothing typed is lost."""
        self._later = later
        self.refuse(str(later))

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Puts the form off for what asks for it inside."""
        try:
            yield
        except TryLater as later:
            self.put_off(later)

    def refuse(self, message: str, field: str | None = None, *, status: int = 422) -> None:
        """Adds what only the domain could know, such as that a name is taken."""
        self._refused = status
        if field is None:
            self.form_errors.append(message)
        else:
            self[field].errors = [*self[field].errors, message]


def at_most(field: wtforms.Field) -> int | None:
    """Return how many characters the field takes; None for passwords, which have their own bound.

    That is what its Length says, else 256.
    """
    if isinstance(field, wtforms.PasswordField):
        return None
    length = _length(field)
    return length.max if length else LONGEST


def _length(field: wtforms.Field) -> Length | None:
    return next((check for check in field.validators if isinstance(check, Length)), None)


def _too_long(field: wtforms.Field, most: int) -> Callable[[wtforms.Form, wtforms.Field], None]:
    """The one check of a field whose text is too long. It costs nothing."""
    length = _length(field)
    message = (length and length.message) or f"Use at most {most:,} characters."

    def refuse(form: wtforms.Form, field: wtforms.Field) -> None:
        raise StopValidation(message)

    return refuse


def tidy(text: str | None) -> str | None:
    """Names without the spaces around them."""
    return text.strip() if text else text


def digits(text: str | None) -> str | None:
    """A code as `plain_code` reads it. A text that is longer than any code stays as it is."""
    return plain_code(text) if text and len(text) <= LONGEST else text


class Checked:
    """A validator that applies a rule of `quartapp.validation`, as commands and imports do.

    The field then holds the form in which the text is stored.
    """

    def __init__(self, check: Callable[[str], str]) -> None:
        self.check = check

    def __call__(self, form: wtforms.Form, field: wtforms.Field) -> None:
        try:
            field.data = self.check(field.data or "")
        except Invalid as invalid:
            raise ValidationError(str(invalid)) from None


printable = Checked(validation.check_printable)
bidi_free = Checked(validation.check_direction)
