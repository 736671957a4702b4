"""Forms that were submitted but not processed, carried through sign-in or shown for resending.

See docs/adr/0085-forms-carried-through-sign-in.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from quart import current_app, flash, g, render_template, request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException

from quartapp import auth
from quartapp.auth import Forbidden, ReauthenticationRequired
from quartapp.authority.session_rule import EndedSession
from quartapp.forms import csrf
from quartapp.forms.sessions import LoginForm
from quartapp.i18n import gettext as _
from quartapp.policy import LABELS
from quartapp.runtime import encryption

# The field of the sign-in forms that holds the encrypted form.
FIELD = "carried"
LASTS = timedelta(days=1)
# Characters of the encrypted form: with the other fields it fits in the largest body accepted.
LONGEST = 60 * 1024
SECRETS = frozenset({"confirm", "code", "factor_code", "credential", "carried"})

View = TypeVar("View", bound=Callable[..., Awaitable[Any]])


def carriable(view: View) -> View:
    """Mark a view whose form may be carried through a sign-in.

    After the sign-in the view is called once more with the fields, to show its form filled. Such a
    view must do nothing unless `form.posted` is true, and return the page with the form otherwise.
    """
    view.carriable = True  # type: ignore[attr-defined]
    return view


@dataclass(frozen=True, slots=True)
class Sent:
    """The form of this request, which a page of this site sent.

    `fields` has neither the CSRF token nor passwords nor codes. `complete` is true if there were no
    passwords or codes, so that the same fields can be sent again.
    """

    action: str
    token: str
    fields: list[tuple[str, str]]
    complete: bool
    carriable: bool

    @property
    def texts(self) -> list[str]:
        """The values of all fields that are not blank, to be copied from a page; empty unless the
        view is carriable.
        """
        return [value for _, value in self.fields if value.strip()] if self.carriable else []


async def sent() -> Sent | None:
    """Return the form of this POST, without its CSRF token and secrets.

    None for other methods, for a body that could not be read, and if the headers do not say that a
    page of this site sent the request.
    """
    if request.method != "POST" or not csrf.sent_by_this_site():
        return None
    try:
        form = await request.form
    except HTTPException:
        return None
    fields = [(name, value) for name, value in form.items(multi=True) if name != csrf.FIELD]
    kept = [(name, value) for name, value in fields if not _is_secret(name)]
    return Sent(
        action=request.full_path.rstrip("?"),
        token=form.get(csrf.FIELD, ""),
        fields=kept,
        complete=len(kept) == len(fields),
        carriable=_is_carriable(request.endpoint),
    )


async def sign_in_page(ended: EndedSession | None, *, query: str) -> Any:
    """Return the sign-in page (422) that carries the form which came with this request.

    The form is in a hidden field, encrypted so that only the user of the ended session gets it
    back. If that user is not known, or the form is too long, the page shows the text to be copied.
    `query` is that of the URL to which the page submits. Returns None if the request has no form
    that its view marks as carriable, or if the form has no text.
    """
    form = await sent()
    if form is None or not form.carriable or not form.texts:
        return None
    sealed = _seal(form, ended.user_id) if ended else None
    page = await render_template(
        "sessions/login.html",
        form=LoginForm(),
        ended=ended,
        query=query,
        carried=sealed,
        texts=[] if sealed else form.texts,
    )
    return page, 422


async def field() -> str:
    """Return the encrypted form in the hidden field of a POST of a sign-in form, or ""."""
    return (await request.form).get(FIELD, "") if request.method == "POST" else ""


async def filled_form() -> Any:
    """Return the page with the form that was carried through this sign-in, filled, not processed.

    Loads the current user again, sets `g.carried` to the fields, calls the view of the form within
    this request, as the user who is signed in now, and returns its answer. If the view refuses (no
    permission, a fresh sign-in needed, an HTTP error such as 404), returns a page with the text to
    be copied (422). Returns None if the request carries no form; and, after flashing a message, if
    it cannot be decrypted for this user, is older than LASTS, or its view is no longer carriable.
    """
    sealed = await field()
    if not sealed:
        return None
    user = auth.unwrapped_current_user()
    await user.load()
    # The page belongs to the new session.
    g.pop("csrf_field", None)
    found = encryption().decrypt_value(sealed, _about(user.user_id), max_age=LASTS)
    if found is None or not _is_carriable(found[0]):
        await flash(
            _(
                "The text that was sent before you signed in is not shown, because another user "
                "wrote it or it is older than a day."
            ),
            "info",
        )
        return None
    endpoint, arguments, fields = found
    g.carried = MultiDict(fields)
    view: Any = current_app.view_functions[endpoint]
    try:
        return await view(**arguments)
    except Forbidden as error:
        reason = _("You no longer have the permission “%(label)s”.", label=LABELS[error.permission])
    except (ReauthenticationRequired, HTTPException):
        reason = _("Its page no longer exists, or you can no longer change it.")
    texts = [value for _, value in fields if value.strip()]
    return await render_template("errors/carried_form.html", reason=reason, texts=texts), 422


def _seal(form: Sent, user_id: object) -> str | None:
    """Return the endpoint and arguments of this request and the form's fields, encrypted for this
    user; None if longer than LONGEST. The query of the URL is not kept.
    """
    what = [request.endpoint, request.view_args or {}, form.fields]
    sealed = encryption().encrypt_value(what, _about(user_id))
    return sealed if len(sealed) <= LONGEST else None


def _about(user_id: object) -> str:
    return f"carried form of {user_id}"


def _is_carriable(endpoint: str | None) -> bool:
    return getattr(current_app.view_functions.get(endpoint or ""), "carriable", False)


def _is_secret(name: str) -> bool:
    """Whether the field of this name holds a password, a code or a credential."""
    return name in SECRETS or "password" in name
