"""The role that was selected in a form."""

from quartapp.forms.base import Form
from quartapp.models import Role
from quartapp.models.roles.refusals import RoleGone
from quartapp.routes.refusals import refuse


async def selected_role(form: Form, name: str | None) -> Role | None:
    """Return the role of this name, which the field `role` of the form has selected.

    None without a name, and if the field has an error. None as well if the role was deleted
    meanwhile: then the field gets that error.
    """
    if not name or form["role"].errors:
        return None
    try:
        return await Role.chosen(name)
    except RoleGone as gone:
        refuse(form, gone)
        return None
