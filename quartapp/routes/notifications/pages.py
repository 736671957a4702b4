"""The notifications page of a user."""

from typing import Any

from quart import Blueprint, abort, render_template, request
from quart_auth import login_required

from quartapp import validation
from quartapp.auth import current_user, signed_in_user
from quartapp.models import Notice, User
from quartapp.routes.pagination import cut
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import returns_to

blueprint = Blueprint("notices", __name__)

PAGE = 30
LATEST = 8


@blueprint.get("/account/notices")
@login_required
async def mine() -> str:
    """Show a page of 30 notifications of the user, newest first, below the number in `after` if
    that is a number. Does not mark them as read."""
    before = validation.parse_number(request.args.get("after", ""))
    rows = await Notice.page(current_user.user_id, before=before, limit=PAGE + 1)
    notices, older = cut(rows, PAGE, lambda notice: notice.seq)
    return await render_template("notifications/list.html", notices=notices, older=older)


@blueprint.get("/account/notices/latest")
@login_required
async def latest() -> str:
    """Answer the content of the menu in the header: the 8 newest notifications of the user."""
    notices = await Notice.page(current_user.user_id, limit=LATEST)
    return await render_template("notifications/latest.html", notices=notices)


@blueprint.post("/account/notices/<int:seq>/read")
@returns_to(mine, "/account/notices")
@login_required
async def read_one(seq: int) -> Any:
    """Mark one notification of the user as read and redirect (303) to the page of notifications.

    Does nothing for one that was read before or was deleted by age. 404 for a number that no
    notification of the user has had.
    """
    user = await signed_in_user()
    if not 0 < seq <= user.notice_seq:
        abort(404)
    await User.read_notice(user.id, seq)
    return see_other("/account/notices")


@blueprint.post("/account/notices/read")
@returns_to(mine, "/account/notices")
@login_required
async def read() -> Any:
    """Mark all notifications that the user has at this moment as read, and redirect (303) to the
    page of notifications."""
    user = await User.get(current_user.user_id)
    if user:
        await user.read_notices()
    return see_other("/account/notices")
