"""Pages for administrators: list, create, edit and delete roles."""

from collections.abc import Awaitable
from functools import partial
from typing import Any

from quart import Blueprint, abort, flash, render_template, request
from quart_auth import login_required

from quartapp.auth import (
    current_user,
    fresh_login_required,
    permission_required,
    wait_until_enforced,
)
from quartapp.forms.roles import RoleForm
from quartapp.i18n import gettext as _
from quartapp.models import Role
from quartapp.models.authorization.transaction import SessionOver
from quartapp.models.base.references import DomainError
from quartapp.models.roles.preview import preview
from quartapp.models.roles.refusals import RoleChanged
from quartapp.models.roles.role import KEEP, holders_when_deleted
from quartapp.policy import ADMIN, DEFAULT_ROLES, MANAGEMENT_PERMISSIONS, Permission
from quartapp.routes.accounts import previews
from quartapp.routes.addresses import name_in
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import refuse, returns_to

blueprint = Blueprint("admin_roles", __name__)

# The choices of the form for `Role.requestable`.
REQUESTABLE = {"default": None, "yes": True, "no": False}


@blueprint.get("/roles")
@login_required
@permission_required(Permission.ROLES_MANAGE)
async def index() -> str:
    """Show all roles as a matrix with all permissions, and the number of users who hold each role,
    up to 1,000.

    The checkboxes of a role are a form that leads to `changes`. Those that its edit would refuse
    are disabled.
    """
    roles = await Role.everyone()
    groups: dict[str, list[Permission]] = {}
    for permission in Permission:
        groups.setdefault(permission.partition(".")[0], []).append(permission)
    return await render_template(
        "roles/list.html",
        roles=roles,
        holders=await Role.holders(roles),
        groups=groups,
        fixed={
            role.id: role.name == ADMIN or bool(current_user.lacks(role.known)) for role in roles
        },
        barred={role.id: _barred(role) for role in roles},
    )


@blueprint.get("/roles/<name>/changes")
@login_required
@permission_required(Permission.ROLES_MANAGE)
async def changes(name: str) -> str:
    """Show what would change for the users of the role if the parameters `permissions` were its
    permissions, with a form that makes the change.

    Ignores permissions that this version does not know. 404 for an unknown role.
    """
    role = await _find(name)
    chosen = set(request.args.getlist("permissions"))
    permissions = [permission for permission in Permission if permission in chosen]
    return await render_template(
        "roles/changes.html",
        role=role,
        permissions=permissions,
        preview=await preview(role, permissions),
        missing=sorted(current_user.lacks([*role.known, *permissions])),
    )


@blueprint.route("/roles/new", methods=["GET", "POST"])
@login_required
@permission_required(Permission.ROLES_MANAGE)
@fresh_login_required
async def new() -> Any:
    """Show the form of a new role; on POST create the role, flash it and answer 303 to the list.

    Refusals show the form again with all errors: 403 for permissions that the user lacks, logged as
    `authz_fail`; 422 if there are others, such as a name that is taken. SessionOver is raised to
    the error handler.
    """
    form = await RoleForm.from_request()
    if await form.passes(_check_new):
        adding = Role.add(**_values(form), by=current_user.actor)
        if await _is_accepted(form, adding):
            await flash(_("The role %(name)s was created.", name=form.name.data), "success")
            return see_other("/admin/roles")
    return await _page(form)


@blueprint.route("/roles/<name>", methods=["GET", "POST"])
@login_required
@permission_required(Permission.ROLES_MANAGE)
@fresh_login_required
async def edit(name: str) -> Any:
    """Show the form of a role; on POST change the role, flash it and answer 303 to the list.

    Before that it waits until all workers enforce the change, even if nothing differed. Users of
    the role stay signed in. If no permission was chosen for the role `admin`, whose checkboxes are
    disabled, its description and permissions stay. Refusals are answered and logged as in `new`; so
    is RoleChanged, if somebody has changed the role since the form was shown (`_is_accepted`). 404
    for an unknown role.
    """
    role = await _find(name)
    form = await RoleForm.from_request(data=_stored(role))
    if await form.passes(partial(_check_edit, role)):
        seen, by = form.version.data, current_user.actor
        editing = role.edit(**_values(form, role), seen_version=seen, by=by)
        if await _is_accepted(form, editing):
            await wait_until_enforced()
            await flash(
                _(
                    "The role %(name)s was changed, also on all open pages.",
                    name=form.name.data,
                ),
                "success",
            )
            return see_other("/admin/roles")
    return await _page(form, role)


async def _check_new(form: RoleForm) -> None:
    """Add to the form the errors of a name that is taken, and of permissions that the user cannot
    give to a new role."""
    values = _values(form)
    name, permissions = values["name"], values["permissions"]
    _refuse(form, *await Role.refusals_to_add(name, permissions, lacks=current_user.lacks))


async def _check_edit(role: Role, form: RoleForm) -> None:
    """Add to the form all errors of changing the role to the submitted values."""
    seen, lacks = form.valid_data("version"), current_user.lacks
    values = _values(form, role)
    _refuse(form, *await role.refusals_to_edit(**values, seen_version=seen, lacks=lacks))


async def _is_accepted(form: RoleForm, change: Awaitable[object]) -> bool:
    """Await the change, and return True. If the models refuse it, put the error into the form
    (`_refuse`) and return False. Raises SessionOver, which is no error of the form."""
    try:
        await change
    except SessionOver:
        raise
    except DomainError as refused:
        _refuse(form, refused)
        return False
    return True


def _refuse(form: RoleForm, *errors: DomainError) -> None:
    """Add the errors to the form. After RoleChanged the form has the version of the role as it is
    now, so that sending it again overwrites the other change."""
    refuse(form, *errors)
    for error in errors:
        if isinstance(error, RoleChanged):
            form.version.raw_data = None
            form.version.data = error.version


@blueprint.post("/roles/<name>/delete")
@returns_to(previews.delete_role, "/admin/roles/{name}/delete")
@login_required
@permission_required(Permission.ROLES_MANAGE)
@fresh_login_required
async def delete(name: str) -> Any:
    """Delete the role, end the sessions of its users, and answer 303 to the list.

    Waits until no worker accepts these sessions, and flashes how many users had the role and how
    many of their tabs have acknowledged. If another request has just deleted it, flashes 0 users.
    Logs nothing. 404 for an unknown role; refusals such as BuiltInRole are raised, and answered
    with the preview.
    """
    role = await _find(name)
    event = await role.remove(by=current_user.actor)
    await wait_until_enforced(event)
    holders = holders_when_deleted(event)
    await flash_receipt(
        _("The role %(name)s was deleted. Users who had it: %(num)s.", name=role.name, num=holders),
        event,
    )
    return see_other("/admin/roles")


async def _find(name: str) -> Role:
    """Return the role that this part of an address stands for, in any case, or answer 404."""
    return await Role.named(name_in(name)) or abort(404)


def _values(form: RoleForm, role: Role | None = None) -> dict[str, Any]:
    """Return the submitted values as arguments for `Role.add` or, with the role, for `Role.edit`. A
    name, a description or permissions with an error are None."""
    chosen = form.valid_data("permissions")
    values = {
        "name": form.valid_data("name"),
        "description": form.valid_data("description"),
        "permissions": None if chosen is None else [Permission(each) for each in chosen],
        "requires_factor": bool(form.requires_factor.data),
        "requestable": REQUESTABLE.get(form.requestable.data or "", KEEP if role else None),
    }
    if role and role.name == ADMIN and not chosen:
        # The checkboxes of admin are disabled, so browsers do not send them.
        values |= {"description": role.description, "permissions": role.known}
    return values


def _stored(role: Role) -> dict[str, Any]:
    """Return the stored values of the role for the fields of the form."""
    return {
        "name": role.name,
        "description": role.description,
        "permissions": [permission.value for permission in role.known],
        "requires_factor": role.requires_factor,
        "version": role.version,
        "requestable": next(k for k, v in REQUESTABLE.items() if v is role.requestable),
    }


def _barred(role: Role) -> frozenset[Permission]:
    """Return the permissions that the user cannot add to the role: those that the user lacks, and
    management permissions for a role that every new account gets."""
    default = MANAGEMENT_PERMISSIONS if role.name in DEFAULT_ROLES else frozenset()
    return frozenset(map(Permission, current_user.lacks(list(Permission)))) | default


async def _page(form: RoleForm, role: Role | None = None) -> Any:
    """Return the page of the form with its status. Without a role it is the page for a new one.

    It is read-only if the user lacks a permission of the role. Otherwise permissions that the user
    lacks, and management permissions of a default role, cannot be checked.
    """
    page = await render_template(
        "roles/edit.html",
        form=form,
        role=role,
        missing=sorted(current_user.lacks(role.known)) if role else [],
        lacking=current_user.lacks(list(Permission)),
        forbidden=MANAGEMENT_PERMISSIONS if role and role.name in DEFAULT_ROLES else frozenset(),
    )
    return page, form.status
