"""Decorators that let only some users call a view, and the errors that they raise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from quart import request

from quartapp.auth import reauthentication
from quartapp.auth.current_user import current_user
from quartapp.auth.reauthentication import IncorrectCode, IncorrectPassword
from quartapp.errors import RetryLater
from quartapp.models.factors.wrong_codes import FactorsBlocked
from quartapp.policy import Permission, may

# Fields with which the page that asks for the password sends the password and a code, next to the
# fields of the original form. No form behind `fresh_login_required` has fields of these names.
PASSWORD_FIELD, CODE_FIELD = "password", "factor_code"

P = ParamSpec("P")
T = TypeVar("T")


class Forbidden(Exception):
    """The user is signed in, but does not hold `permission`."""

    def __init__(self, permission: Permission) -> None:
        super().__init__(permission.value)
        self.permission = permission


class ReauthenticationRequired(Exception):
    """The user must re-enter the password. The request had no effect.

    `reason` is the error of a password or code that came with the request: it was incorrect, or
    there were too many attempts. None if the request had no password.
    """

    def __init__(
        self, reason: RetryLater | IncorrectPassword | IncorrectCode | FactorsBlocked | None = None
    ) -> None:
        self.reason = reason


def permission_required(
    *permissions: Permission,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Return a decorator. Its view raises Forbidden unless the current user holds the permission,
    or one of several. The error names the first of them; if the user would have one with a second
    factor, that one.

    Place it under `login_required`, which handles requests without a session.
    """

    def decorate(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(view)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if not any(may(current_user, each) for each in permissions):
                waiting = filter(current_user.waits_for, permissions)
                raise Forbidden(next(waiting, permissions[0]))
            return await view(*args, **kwargs)

        return wrapper

    return decorate


def fresh_login_required(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Decorate a view so that its POST needs a user who authenticated within FRESH_SECONDS.

    If the session is not fresh and the POST has no field PASSWORD_FIELD, raises
    ReauthenticationRequired and does not call the view. The page that answers the error sends the
    same fields again together with the password and, for a user with a second factor, CODE_FIELD.
    Such a POST is checked by `reauthenticate`, which renews the session and its cookie, and then
    calls the view; a wrong password or code and an exceeded limit raise ReauthenticationRequired
    with that error as its reason. SessionOver, RightsChanged and Unauthorized, which mean that the
    session has ended or lost a permission meanwhile, are passed on. Other methods are never
    refused.

    Place it under `login_required` and `permission_required`. See docs/adr/0030.
    """

    @wraps(view)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if request.method == "POST" and not current_user.fresh:
            sent = await request.form
            password = sent.get(PASSWORD_FIELD)
            if password is None:
                raise ReauthenticationRequired
            try:
                await reauthentication.reauthenticate(password, sent.get(CODE_FIELD, ""))
            except (RetryLater, IncorrectPassword, IncorrectCode, FactorsBlocked) as error:
                raise ReauthenticationRequired(error) from error
        return await view(*args, **kwargs)

    return wrapper
