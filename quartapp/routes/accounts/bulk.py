"""Actions on several users, after a preview. `routes.audit.receipts` shows what became of it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from quart import Blueprint, render_template, request
from quart_auth import login_required

from quartapp.auth import (
    Forbidden,
    current_user,
    fresh_login_required,
    wait_until_enforced,
)
from quartapp.forms.users import BulkForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Event, Role, User
from quartapp.models.accounts import preview as previews
from quartapp.models.accounts.bulk_action import (
    MOST_USERS,
    Action,
    BulkAction,
    Outcome,
)
from quartapp.models.cluster.barrier_mark import TabsOf
from quartapp.policy import may
from quartapp.routes.audit.receipts import ACTION_LABELS
from quartapp.routes.redirects import see_other
from quartapp.runtime import runtime

blueprint = Blueprint("admin_bulk", __name__)


def allowed_actions() -> dict[str, str]:
    """Return the actions that the current user has the permission for, with their labels."""
    return {
        action.value: str(label) for action, label in ACTION_LABELS.items() if _is_allowed(action)
    }


@blueprint.get("/users/bulk")
@login_required
async def show() -> Any:
    """Show what the action of the query would do to the selected users, with a form to confirm it.

    Changes nothing. Answers 422 with a message if the selection is invalid, and 403 without the
    permission that the action needs.
    """
    form = BulkForm(formdata=request.args)
    return await _page(form, await _offer(form))


@blueprint.post("/users/bulk")
@login_required
@fresh_login_required
async def do() -> Any:
    """Do the action to the selected users, one after the other, wait until no worker accepts the
    sessions that have ended, and redirect (303) to the page that tells what became of each.

    Logs for each user `authz_change` or `user_disabled` if that was done, and `authz_fail` if the
    actor lacks a permission that the user has; nothing for sessions that have ended. Answers as
    `show` does if the selection is invalid. If the actor's session ends meanwhile, the other users
    are left as they are.
    """
    form = await BulkForm.from_request()
    roles = await _offer(form)
    if not form.sent or (users := await _valid_users(form)) is None:
        return await _page(form, roles)
    action, role = Action(form.action.data), roles.get(form.role.data or "")
    started = await BulkAction.begin(action, role, users, by=current_user.actor)
    try:
        await started.run(role, users, by=current_user.actor)
    finally:
        # Also after an error: what was done before it must be enforced when the answer is sent.
        _log(started, {user.id: user.username for user in users})
        await _wait(started.events)
    return see_other(f"/receipts/bulk/{started.id}")


async def _wait(events: Sequence[Event]) -> None:
    """Wait until all workers enforce what these events changed, and up to a second for open tabs.

    The transactions of events that end sessions have written their marks, so that it takes no
    longer for many of them.
    """
    marked = [wait_until_enforced(event) for event in events if event.marked]
    await asyncio.gather(*(marked or [wait_until_enforced()]))


def _log(action: BulkAction, names: dict[Any, str]) -> None:
    """Log what became of the action for each user: see `do`. `names` are the usernames by id."""
    for result in action.results:
        user, by = names[result.user], current_user.username
        if result.outcome is Outcome.MISSING_PERMISSION:
            log.warning("authz_fail", user=by, target=user, missing=result.missing)
        elif result.outcome is not Outcome.DONE:
            continue
        elif action.action is Action.DISABLE:
            log.info("user_disabled", user=user, by=by)
        elif action.action is Action.GRANT:
            log.info("authz_change", user=user, granted=action.role, by=by)
        elif action.action is Action.REVOKE:
            log.info("authz_change", user=user, revoked=action.role, by=by)


async def _offer(form: BulkForm) -> dict[str, Role]:
    """Set the choices of the form, and return the roles by name.

    Raises Forbidden without the permission that the selected action needs; if none is selected,
    without both of them.
    """
    roles = {role.name: role for role in await Role.everyone()}
    form.at_most = MOST_USERS
    form.offer(
        roles.values(), {action.value: str(label) for action, label in ACTION_LABELS.items()}
    )
    chosen = [action for action in Action if action.value == form.action.data] or list(Action)
    if not any(_is_allowed(action) for action in chosen):
        raise Forbidden(chosen[0].permission)
    return roles


def _is_allowed(action: Action) -> bool:
    return may(current_user, action.permission)


async def _valid_users(form: BulkForm) -> list[User] | None:
    """Return the selected users; None, with all errors in the form, if it is not valid or a user
    does not exist."""
    form.validate()
    users = [] if form.users.errors else await _find(form)
    return None if form.errors else users


async def _find(form: BulkForm) -> list[User]:
    """Return the selected users who exist. Adds an error to the form if one does not."""
    names = form.users.data or []
    found = await asyncio.gather(*map(User.by_username, names))
    unknown = [name for name, user in zip(names, found, strict=True) if user is None]
    if unknown:
        listed = ", ".join(unknown)
        form.refuse(_("These users do not exist: %(names)s.", names=listed), "users")
    return list({user.id: user for user in found if user}.values())


async def _page(form: BulkForm, roles: dict[str, Role]) -> Any:
    """Return the preview with a form to confirm it (200), or the errors of the selection (422).

    For an action that ends sessions, also counts the open tabs of the users: that inserts a barrier
    mark and waits for the answers of the workers (`Barrier.count_open_tabs`).
    """
    users = await _valid_users(form)
    if users is None:
        page = await render_template("accounts/bulk_preview.html", form=form, preview=None)
        return page, 422
    action, role = Action(form.action.data), roles.get(form.role.data or "")
    seen = await previews.preview(
        action, role, users, actor=current_user.user_id, lacks=current_user.lacks
    )
    tabs = None
    if action is not Action.GRANT:
        whose = TabsOf(users=[each.user.id for each in seen.affected])
        tabs = await runtime().barrier.count_open_tabs(whose)
    return await render_template(
        "accounts/bulk_preview.html",
        form=form,
        action=action,
        label=ACTION_LABELS[action],
        role=role,
        preview=seen,
        tabs=tabs,
        own=current_user.user_id in {each.user.id for each in seen.affected},
    )
