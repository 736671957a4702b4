"""The error handlers: which answer each kind of error gets."""

from __future__ import annotations

from typing import Any

from quart import (
    Quart,
    flash,
    g,
    has_request_context,
    has_websocket_context,
    jsonify,
    redirect,
    render_template,
    request,
)
from quart_auth import Unauthorized
from werkzeug.exceptions import HTTPException

from quartapp.auth import (
    CODE_FIELD,
    Forbidden,
    IncorrectCode,
    IncorrectPassword,
    ReauthenticationRequired,
    current_user,
    report_failed_attempt,
    signed_in_user,
    unwrapped_current_user,
)
from quartapp.authority import session_rule, session_states
from quartapp.authority.session_rule import EndedSession
from quartapp.db.mongo import Unavailable
from quartapp.errors import RetryLater
from quartapp.forms.csrf import FIELD, CrossSite, InvalidToken
from quartapp.forms.sessions import ConfirmForm, ConfirmWithFactorForm
from quartapp.i18n import lazy_gettext as _
from quartapp.i18n import library_text
from quartapp.log import log
from quartapp.models.accounts import closed
from quartapp.models.authorization.transaction import SessionOver
from quartapp.models.base.references import DomainError
from quartapp.models.factors.wrong_codes import FactorsBlocked
from quartapp.policy import LABELS
from quartapp.routes import carried_forms, refusals
from quartapp.routes.addresses import route_pattern
from quartapp.routes.redirects import back, see_other, sign_in_page, with_next
from quartapp.routes.sessions import reauthentication
from quartapp.routes.sessions.sign_in import AccountDeactivated, AccountDisabled, MustVerify

TEXTS = {
    400: (
        _("Bad request"),
        _("The server could not understand this request. Go back and try again."),
    ),
    403: (_("Not allowed"), _("You do not have permission to do this.")),
    404: (_("Page not found"), _("This page does not exist or was deleted. Check the address.")),
    405: (_("Method not allowed"), _("This address does not accept this kind of request.")),
    408: (_("Request timed out"), _("The request took too long to arrive. Try again.")),
    413: (_("Request too large"), _("Send less data at once.")),
    429: (_("Too many requests"), _("Wait a moment, then try again.")),
    500: (
        _("Something went wrong"),
        _("This is an error of the site, and it was logged. Try again later."),
    ),
    503: (_("Service busy"), _("There are too many requests right now. Try again in a moment.")),
}
FACTORS = "/account/factors"
AWAY = (_("Database unavailable"), _("No change could be confirmed. Try again in a moment."))


def init_app(app: Quart) -> None:
    """Register the handlers of this module, and replace Quart's logging of exceptions."""
    app.register_error_handler(Unauthorized, sign_in_first)
    app.register_error_handler(Forbidden, not_allowed)
    app.register_error_handler(CrossSite, cross_site)
    app.register_error_handler(InvalidToken, invalid_token)
    app.register_error_handler(SessionOver, session_over)
    app.register_error_handler(AccountDeactivated, offer_to_restore)
    app.register_error_handler(MustVerify, verify_first)
    app.register_error_handler(AccountDisabled, account_disabled)
    app.register_error_handler(DomainError, refused)
    app.register_error_handler(ReauthenticationRequired, ask_for_password)
    app.register_error_handler(RetryLater, try_later)
    for error in Unavailable:
        app.register_error_handler(error, database_unavailable)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(500, internal_error)
    app.log_exception = log_exception  # type: ignore[method-assign]


async def sign_in_first(_error: Unauthorized) -> Any:
    """Answer a request that has no active session.

    Logs `session_use_after_expire` if the cookie is that of an ended session. A handshake of a
    socket gets 401 in plain text; `/api/` gets 401 JSON with `ended`, the reason of the end or
    null. Other requests are redirected (302) to the sign-in page with `next`; if a session has
    ended, they are answered as `_sign_in_again` says.
    """
    ended = current_user.ended
    if ended:
        log.info(
            "session_use_after_expire",
            user=str(ended.user_id),
            session=str(ended.session_id),
            reason=ended.reason.value,
        )
    if has_websocket_context():
        return f"{_('Sign in first.')}\n", 401
    if _wants_json():
        return _signed_out_json(), 401
    if ended is None:
        return redirect(sign_in_page(), 302)
    return await _sign_in_again(ended)


async def session_over(error: SessionOver) -> Any:
    """Answer a request whose session ended while it ran.

    `/api/` gets 401 JSON without details. Otherwise reads from the database why the session ended,
    treats the user as signed out for the rest of the request, and answers as `_sign_in_again` says.
    A session that no longer exists in the database counts as ended too.
    """
    if _wants_json():
        return jsonify(error="signed_out", ended=None), 401
    user = unwrapped_current_user()
    ended = await session_states.state_by_id(error.session_id)
    if not isinstance(ended, EndedSession):
        ended = session_rule.state_of_deleted(error.session_id, user.user_id)
    user.end(ended)
    return await _sign_in_again(ended)


async def _sign_in_again(ended: EndedSession) -> Any:
    """Answer a request of an ended session with the sign-in page, which says why it ended.

    A POST whose form can be carried gets the page itself with the form (422). All other requests
    are redirected to it (302), a POST with a flashed warning that nothing was changed; except for
    the sign-out, which is redirected without one.
    """
    target = sign_in_page(ended=ended.session_id)
    if request.method != "POST" or request.endpoint == "accounts.logout":
        return redirect(target, 302)
    page = await carried_forms.sign_in_page(ended, query=f"?{target.partition('?')[2]}")
    if page is None:
        await flash(
            str(
                _(
                    "Your session ended before you sent this, so nothing was changed. Sign in and "
                    "try again."
                )
            ),
            "warning",
        )
    return page or redirect(target, 302)


async def offer_to_restore(_: AccountDeactivated) -> Any:
    """Redirect (303) to the page that offers to restore the account."""
    return see_other("/account/closed")


async def verify_first(_: MustVerify) -> Any:
    """Redirect (303) to the page that asks for the code from the email, keeping `next`."""
    return see_other(with_next("/verify"))


async def account_disabled(error: AccountDisabled) -> Any:
    """Explain in a page (403) why the account cannot be used, to a user who has entered the right
    password or used a passkey. Logs `authn_login_fail`."""
    report_failed_attempt(login=error.user.username, why="disabled")
    return await render_template(
        "accounts/disabled.html", why=await closed.message_for(error.user)
    ), 403


async def not_allowed(error: Forbidden) -> Any:
    """Answer 403 with a page, for `/api/` with JSON, that names the missing permission.

    The page shows what the user has submitted. Logs `authz_fail`. If the user only needs a second
    factor for the permission, answers as `factor_first` does.
    """
    if current_user.waits_for(error.permission):
        return await factor_first(error)
    log.warning("authz_fail", user=current_user.username, permission=error.permission.value)
    if _wants_json():
        return jsonify(error="forbidden", permission=error.permission.value), 403
    page = await render_template(
        "errors/forbidden.html",
        permission=error.permission.value,
        label=LABELS[error.permission],
        sent=await carried_forms.sent(),
    )
    return page, 403


async def factor_first(error: Forbidden) -> Any:
    """Lead the user to set up a second factor, because the role with the permission requires it.

    Logs `authz_fail`. A GET is redirected (302) to the page of the factors, with `next`; other
    requests get a page with a link to it (403), and `/api/` gets 403 JSON.
    """
    log.warning("authz_fail", user=current_user.username, withheld=error.permission.value)
    if _wants_json():
        return jsonify(error="factor_required", permission=error.permission.value), 403
    if request.method in ("GET", "HEAD"):
        return redirect(with_next(FACTORS, request.full_path.rstrip("?")), 302)
    page = await render_template(
        "errors/factor_required.html",
        permission=error.permission.value,
        set_up=with_next(FACTORS, back()),
    )
    return page, 403


async def cross_site(_error: CrossSite) -> Any:
    """Answer 403 with a page, and log `malicious_csrf`."""
    log.warning("malicious_csrf", path=route_pattern(), origin=request.headers.get("Origin"))
    return await _page(
        403, _("Request blocked"), _("Another site sent this request. Nothing was changed.")
    )


async def invalid_token(error: InvalidToken) -> Any:
    """Answer a form with a missing or old CSRF token. Nothing of the form is processed.

    - If the session has ended: as `sign_in_first` does.
    - If nobody is signed in and the form can be carried: the sign-in page with the form (422).
    - If the headers do not say that a page of this site sent it: a page (403), and logs
      `malicious_csrf`.
    - Else a page with the same form and a new token, to be submitted again (422).
    """
    if current_user.ended:
        return await sign_in_first(Unauthorized())
    if not current_user.signed_in:
        query = f"?{sign_in_page().partition('?')[2]}"
        if page := await carried_forms.sign_in_page(None, query=query):
            return page
    if not error.same_site:
        log.warning("malicious_csrf", path=route_pattern(), origin=None)
        detail = _("This form has expired or is not from this site. Reload the page and try again.")
        return await _page(403, _("Request blocked"), detail)
    page = await render_template(
        "errors/resend.html", no_cookies=not request.cookies, **await _to_send_again("code")
    )
    return page, 422


async def ask_for_password(error: ReauthenticationRequired) -> Any:
    """Answer with the page that asks for the password, and a code if the user has a second factor.

    The page contains the submitted fields, which are submitted again with the password, and says
    what the request would do. It shows `error.reason`, if any. The status is 422, or that of the
    rate limit (429 or 503), with Retry-After.
    """
    user = await signed_in_user()
    form = await (ConfirmWithFactorForm if user.factors else ConfirmForm).from_request()
    # The page contains the submitted form, so the browser must not replace its URL.
    g.pop("form_page_address", None)
    match error.reason:
        case RetryLater():
            form.set_retry_later(error.reason)
        case IncorrectPassword():
            form.refuse(str(error.reason), "password")
        case IncorrectCode():
            form.refuse(str(error.reason), "factor_code")
        case FactorsBlocked():
            form.refuse(str(error.reason))
    page = await render_template(
        "sessions/reauthenticate.html",
        form=form,
        user=user,
        back=back(),
        does=reauthentication.action(request.endpoint, request.view_args or {}, await request.form),
        **await _to_send_again(),
    )
    return page, form.status, form.headers


async def _to_send_again(*without: str) -> dict[str, Any]:
    """Return the URL of this request as `action`, and as `fields` those of the submitted form,
    without the CSRF token, passwords, the re-authentication code and the names in `without`."""
    fields = [
        (name, value)
        for name, value in (await request.form).items(multi=True)
        if name not in (FIELD, "confirm", CODE_FIELD, *without) and "password" not in name
    ]
    return {"action": request.full_path.rstrip("?"), "fields": fields}


async def refused(error: DomainError) -> Any:
    """Answer an error of the models with its status: 403 for a missing permission, else 422
    (`refusals.status_of`).

    Shows its text on the page with the form if the route names one (see `routes.refusals`), else on
    an error page; for `/api/`, as JSON.
    """
    status = refusals.status_of(error)
    if not has_websocket_context() and (page := await refusals.answer(str(error))):
        return page, status
    return await _page(status, _("This cannot be done"), str(error))


async def try_later(error: RetryLater) -> Any:
    """Answer 429 or 503, as the error says, with Retry-After.

    Shows its text on the page with the form if the route names one, else on an error page; to a
    handshake of a socket in plain text.
    """
    headers = {"Retry-After": str(error.retry_after)}
    if has_websocket_context():
        return f"{error}\n", error.status, headers
    if page := await refusals.answer(str(error)):
        return page, error.status, headers
    body, status = await _page(error.status, TEXTS[error.status][0], str(error))
    return body, status, headers


async def database_unavailable(error: Exception) -> Any:
    """Answer 503 with an error page that shows what was submitted, and Retry-After. Logs the error
    `database_away`.

    `/api/` gets JSON instead. A handshake of a socket gets plain text without Retry-After.
    """
    log.error("database_away", error=type(error).__name__, detail=str(error)[:300])
    if has_websocket_context():
        return f"{_('Try again later.')}\n", 503
    # The page must not load the current user, because the database is unavailable.
    if _wants_json():
        return jsonify(error="unavailable"), 503, {"Retry-After": "2"}
    page = await render_template(
        "errors/error.html",
        status=503,
        title=AWAY[0],
        detail=AWAY[1],
        back=None,
        sent=await carried_forms.sent(),
        again=True,
    )
    return page, 503, {"Retry-After": "2"}


async def http_error(error: HTTPException) -> Any:
    """Answer an error of Quart or `abort` with an error page of its status, and its headers Allow
    and Retry-After.

    Redirects and errors that bring their own response are returned unchanged. A handshake of a
    socket gets plain text.
    """
    status = error.code or 500
    if has_websocket_context():
        return f"{error.name}\n", status
    if error.response is not None or 300 <= status < 400:
        return error
    text = TEXTS.get(status, (library_text(error.name, _("Error")), _("Go back and try again.")))
    body, status = await _page(status, *text)
    headers = {k: v for k, v in error.get_headers() if k.lower() in ("allow", "retry-after")}
    return body, status, headers


def log_exception(what: Any) -> None:
    """Log an unhandled exception with the pattern of its route. Replaces Quart's method, which logs
    the path, in which there may be a token."""
    inside = has_request_context() or has_websocket_context()
    log.error("unhandled", exc_info=what, path=route_pattern() if inside else None)


async def internal_error(_error: Exception) -> Any:
    """Answer an unhandled exception with 500 and an error page without details, which are only in
    the log. In plain text for a handshake, and if the page itself fails, which is logged too
    (`error_page_failed`)."""
    if has_websocket_context():
        return f"{_('Something went wrong.')}\n", 500
    try:
        return await _page(500, *TEXTS[500])
    except Exception:
        log.exception("error_page_failed")
        return f"{_('Something went wrong.')}\n", 500, {"Content-Type": "text/plain; charset=utf-8"}


async def _page(status: int, title: str, detail: str) -> tuple[Any, int]:
    """Return the error page and the status; for `/api/`, JSON with the title as `error`.

    The page links back, shows what was submitted, and offers to try again for 429 and 503.
    """
    if _wants_json():
        return jsonify(error=str(title)), status
    page = await render_template(
        "errors/error.html",
        status=status,
        title=title,
        detail=detail,
        back=back(),
        sent=await carried_forms.sent(),
        again=status in (429, 503),
    )
    return page, status


def _wants_json() -> bool:
    return request.path.startswith("/api/")


def _signed_out_json() -> Any:
    """Return JSON that says why and by whom the session of the cookie ended; `ended` is null if the
    browser has no cookie of an ended session."""
    ended = current_user.ended
    if ended is None:
        return jsonify(error="signed_out", ended=None)
    return jsonify(
        error="signed_out",
        ended={
            "session": str(ended.session_id),
            "reason": ended.reason.value,
            "by": ended.by,
            "message": ended.message,
        },
    )
