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
    websocket,
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
    remote_address,
    signed_in_user,
    unwrapped_current_user,
)
from quartapp.authority import session_rule
from quartapp.authority.session_rule import EndedSession
from quartapp.db.mongo import Unavailable
from quartapp.errors import RetryLater
from quartapp.forms.csrf import FIELD, CrossSite, InvalidToken
from quartapp.forms.sessions import ConfirmForm, ConfirmWithFactorForm
from quartapp.log import log
from quartapp.models.accounts import closed
from quartapp.models.authorization.privileges import MissingPermission
from quartapp.models.authorization.transaction import SessionOver
from quartapp.models.base.references import DomainError
from quartapp.models.factors.wrong_codes import FactorsBlocked
from quartapp.policy import LABELS
from quartapp.routes import carried_forms, refusals
from quartapp.routes.redirects import back, see_other, sign_in_page, with_next
from quartapp.routes.sessions import reauthentication
from quartapp.routes.sessions.sign_in import AccountClosed, AccountShut, MustVerify

TEXTS = {
    400: ("Bad request", "The server could not understand this request. Go back and try again."),
    403: ("Not allowed", "You do not have permission to do this."),
    404: ("Page not found", "This page does not exist or was deleted. Check the address."),
    405: ("Method not allowed", "This address does not accept this kind of request."),
    408: ("Request timed out", "The request took too long to arrive. Try again."),
    413: ("Request too large", "Send less data at once."),
    429: ("Too many requests", "Wait a moment, then try again."),
    500: (
        "Something went wrong",
        "This is an error of the site, and it was logged. Try again later.",
    ),
    503: ("Service busy", "There are too many requests right now. Try again in a moment."),
}
FACTORS = "/account/factors"
AWAY = ("Database unavailable", "No change could be confirmed. Try again in a moment.")


def init_app(app: Quart) -> None:
    app.register_error_handler(Unauthorized, sign_in_first)
    app.register_error_handler(Forbidden, not_allowed)
    app.register_error_handler(CrossSite, cross_site)
    app.register_error_handler(InvalidToken, old_page)
    app.register_error_handler(SessionOver, session_over)
    app.register_error_handler(AccountClosed, open_again)
    app.register_error_handler(MustVerify, verify_first)
    app.register_error_handler(AccountShut, account_shut)
    app.register_error_handler(DomainError, refused)
    app.register_error_handler(ReauthenticationRequired, confirm_first)
    app.register_error_handler(RetryLater, try_later)
    for error in Unavailable:
        app.register_error_handler(error, database_away)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(500, broken)
    app.log_exception = write_down  # type: ignore[method-assign]


async def sign_in_first(_: Unauthorized) -> Any:
    ended = current_user.ended
    if ended:
        log.info(
            "session_use_after_expire",
            user=str(ended.user_id),
            session=str(ended.session_id),
            reason=ended.reason.value,
        )
    if has_websocket_context():
        return "Sign in first.\n", 401
    if _wants_json():
        return _signed_out_json(), 401
    if ended is None:
        return redirect(sign_in_page(), 302)
    return await _sign_in_again(ended)


async def session_over(error: SessionOver) -> Any:
    """Answer a request whose session ended while it ran, as the next request would be answered."""
    if _wants_json():
        return jsonify(error="signed_out", ended=None), 401
    user = unwrapped_current_user()
    ended = await session_rule.state_by_id(error.session_id)
    if not isinstance(ended, EndedSession):
        ended = session_rule.state_of_deleted(error.session_id, user.user_id)
    user.end(ended)
    return await _sign_in_again(ended)


async def _sign_in_again(ended: EndedSession) -> Any:
    """Answer with the sign-in page, which carries the submitted form if that is possible."""
    target = sign_in_page(ended=ended.session_id)
    if request.method != "POST" or request.endpoint == "accounts.logout":
        return redirect(target, 302)
    page = await carried_forms.sign_in_page(ended, query=f"?{target.partition('?')[2]}")
    if page is None:
        await flash(
            "Your session ended before you sent this, so nothing was changed. Sign in and try "
            "again.",
            "warning",
        )
    return page or redirect(target, 302)


async def open_again(_: AccountClosed) -> Any:
    return see_other("/account/closed")


async def verify_first(_: MustVerify) -> Any:
    return see_other(with_next("/verify"))


async def account_shut(error: AccountShut) -> Any:
    """Explain why the account is disabled, to a user who has entered the right password or used a
    passkey."""
    log.warning("authn_login_fail", login=error.user.username, ip=remote_address(), why="disabled")
    return await render_template("accounts/disabled.html", why=await closed.why(error.user)), 403


async def not_allowed(error: Forbidden) -> Any:
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
    """Lead users to set up a second factor, where one of their roles requires it."""
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


async def cross_site(_: CrossSite) -> Any:
    log.warning("malicious_csrf", path=_route(), origin=request.headers.get("Origin"))
    return await _page(
        403, "Request blocked", "Another site sent this request. Nothing was changed."
    )


async def old_page(error: InvalidToken) -> Any:
    """Answer a form with an old CSRF token.

    Shows the form for resending if the headers say that a page of this site sent it.
    """
    if current_user.ended:
        return await sign_in_first(Unauthorized())
    if not current_user.signed_in:
        query = f"?{sign_in_page().partition('?')[2]}"
        if page := await carried_forms.sign_in_page(None, query=query):
            return page
    if not error.same_site:
        log.warning("malicious_csrf", path=_route(), origin=None)
        detail = "This form has expired or is not from this site. Reload the page and try again."
        return await _page(403, "Request blocked", detail)
    page = await render_template(
        "errors/resend.html", no_cookies=not request.cookies, **await _to_send_again("code")
    )
    return page, 422


async def confirm_first(error: ReauthenticationRequired) -> Any:
    """Ask for the password, and a code if the user has a second factor.

    The page contains the submitted fields, which are submitted again with the password.
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
    """Return the URL and the fields of the submitted form, without passwords, codes and token."""
    fields = [
        (name, value)
        for name, value in (await request.form).items(multi=True)
        if name not in (FIELD, "confirm", CODE_FIELD, *without) and "password" not in name
    ]
    return {"action": request.full_path.rstrip("?"), "fields": fields}


async def refused(error: DomainError) -> Any:
    status = status_of(error)
    if not has_websocket_context() and (page := await refusals.answer(str(error))):
        return page, status
    return await _page(status, "This cannot be done", str(error))


def status_of(error: DomainError) -> int:
    """403 for a permission that is missing, which is logged; 422 for everything else."""
    if not isinstance(error, MissingPermission):
        return 422
    log.warning(
        "authz_fail",
        user=current_user.username if current_user.signed_in else None,
        target=error.target,
        missing=error.missing,
        path=_route(),
    )
    return 403


async def try_later(error: RetryLater) -> Any:
    headers = {"Retry-After": str(error.retry_after)}
    if has_websocket_context():
        return f"{error}\n", error.status, headers
    if page := await refusals.answer(str(error)):
        return page, error.status, headers
    body, status = await _page(error.status, TEXTS[error.status][0], str(error))
    return body, status, headers


async def database_away(error: Exception) -> Any:
    log.error("database_away", error=type(error).__name__, detail=str(error)[:300])
    if has_websocket_context():
        return "Try again later.\n", 503
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
    status = error.code or 500
    if has_websocket_context():
        return f"{error.name}\n", status
    if error.response is not None or 300 <= status < 400:
        return error
    body, _ = await _page(status, *TEXTS.get(status, (error.name, "Go back and try again.")))
    headers = {k: v for k, v in error.get_headers() if k.lower() in ("allow", "retry-after")}
    return body, status, headers


def write_down(what: Any) -> None:
    """Log an unhandled exception. Replaces Quart's method, which logs the path with its tokens."""
    inside = has_request_context() or has_websocket_context()
    log.error("unhandled", exc_info=what, path=_route() if inside else None)


async def broken(_: Exception) -> Any:
    """Answer an unhandled exception without details, which are only in the log."""
    if has_websocket_context():
        return "Something went wrong.\n", 500
    try:
        return await _page(500, *TEXTS[500])
    except Exception:
        log.exception("error_page_failed")
        return "Something went wrong.\n", 500, {"Content-Type": "text/plain; charset=utf-8"}


async def _page(status: int, title: str, detail: str) -> tuple[Any, int]:
    if _wants_json():
        return jsonify(error=title), status
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


def _route() -> str | None:
    """Return the pattern of the route for the log. The path itself may contain a token."""
    rule = (websocket if has_websocket_context() else request).url_rule
    return rule and rule.rule


def _wants_json() -> bool:
    return request.path.startswith("/api/")


def _signed_out_json() -> Any:
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
