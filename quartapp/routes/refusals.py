"""How the errors of the models are answered: their status, and the form or page that shows them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any
from urllib.parse import quote

from quart import g
from werkzeug.exceptions import HTTPException

from quartapp.auth import Forbidden, current_user
from quartapp.forms.base import Form
from quartapp.log import log
from quartapp.models.authorization.privileges import MissingPermission
from quartapp.models.base.references import DomainError
from quartapp.routes.addresses import route_pattern

View = Callable[..., Awaitable[Any]]


def returns_to(page: View, address: str) -> Callable[[View], View]:
    """Return a decorator for a view of a POST: its domain errors and rate limits are shown on
    `page`, a view that is called with the same arguments.

    `address` is the URL of the page, which the browser then shows; names in braces are arguments.
    The page shows the error above its content (see layout.html) and should fill its forms with the
    submitted values. Place this directly below the route. It only stores both in `g`:
    `routes.errors` calls `answer`.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        async def wrapper(**arguments: Any) -> Any:
            g.form_page = partial(page, **arguments)
            quoted = {name: quote(str(value), safe="") for name, value in arguments.items()}
            g.form_page_address = address.format_map(quoted)
            return await view(**arguments)

        wrapper.returns_to = page  # type: ignore[attr-defined]
        return wrapper

    return decorate


def refuse(form: Form, *errors: DomainError) -> None:
    """Add the errors to the form, each to the field that it names, if the form has that, with its
    status (`status_of`)."""
    for error in errors:
        field = error.field if error.field and error.field in form else None
        form.refuse(str(error), field, status=status_of(error))


def status_of(error: DomainError) -> int:
    """Return 403 for a missing permission, which is logged as `authz_fail`; 422 for all others."""
    if not isinstance(error, MissingPermission):
        return 422
    log.warning(
        "authz_fail",
        user=current_user.username if current_user.signed_in else None,
        target=error.target,
        missing=error.missing,
        path=route_pattern(),
    )
    return 403


async def answer(message: str) -> Any:
    """Return the body of the page that contains the form, with the message. The caller sets the
    status.

    None if the route has no such page, if the user may not read it, or if it answers an HTTP error.
    """
    page = g.pop("form_page", None)
    if page is None:
        return None
    g.refusal = message
    try:
        answered = await page()
    except (Forbidden, HTTPException):
        g.pop("refusal")
        return None
    return answered[0] if isinstance(answered, tuple) else answered
