"""`quartapp role`: list, create, edit and delete roles.

A command for a role that does not exist, or that a rule of the models refuses, prints the reason in
one line and exits with 1 (`cli.base.CommandGroup`).
"""

from __future__ import annotations

import click

from quartapp import validation
from quartapp.cli.base import echo, print_table, validated
from quartapp.cli.database import find_role, wait_until_enforced
from quartapp.cli.decorators import data_option, with_database
from quartapp.cli.groups import role
from quartapp.models import Role
from quartapp.models.base.actor import SYSTEM
from quartapp.models.roles.role import KEEP, holders_when_deleted
from quartapp.policy import Permission

PERMISSION = click.Choice([permission.value for permission in Permission])

REQUIRES = "Whether the permissions apply only to users with a second factor."
# Values of --requests: see `Role.can_be_requested`.
REQUESTS = {"yes": True, "no": False, "default": None}
REQUESTS_HELP = "Whether users can request it: by default, unless it has management permissions."


@role.command("list")
@data_option
@with_database
async def list_roles() -> None:
    """List all roles. Shows their permissions and how many users have them, up to 1,000."""
    roles = await Role.everyone()
    holders = await Role.holders(roles)
    rows = [
        [
            found.name,
            holders[found.id],
            ", ".join([*found.known, *(f"{name} (unknown)" for name in found.unknown)]),
            "required" * found.requires_factor,
            "yes" if found.can_be_requested else "no",
        ]
        for found in roles
    ]
    print_table(["NAME", "USERS", "PERMISSIONS", "SECOND FACTOR", "REQUESTS"], rows)


@role.command()
@click.argument("name")
@click.option("--description", default="", help="Text for administrators.")
@click.option(
    "--permission", "permissions", multiple=True, type=PERMISSION, help="Can be repeated."
)
@click.option("--require-factor/--no-require-factor", "required", help=REQUIRES)
@click.option("--requests", type=click.Choice(list(REQUESTS)), help=REQUESTS_HELP)
@data_option
@with_database
async def create(
    name: str,
    description: str,
    permissions: tuple[str, ...],
    required: bool,
    requests: str | None,
) -> None:
    """Create a role. Fails if there is a role of this name."""
    name = validated(validation.check_role_name, name)
    description = validated(validation.check_description, description)
    created = await Role.add(
        name,
        description,
        {Permission(p) for p in permissions},
        requires_factor=required,
        requestable=REQUESTS[requests or "default"],
        by=SYSTEM,
    )
    echo(f"Created the role {created.name}.")


@role.command()
@click.argument("name")
@click.option("--name", "new_name", metavar="NAME", help="New name.")
@click.option("--description", help="Text for administrators.")
@click.option("--allow", multiple=True, type=PERMISSION, help="Add a permission.")
@click.option("--forbid", multiple=True, type=PERMISSION, help="Remove a permission.")
@click.option("--require-factor/--no-require-factor", "required", default=None, help=REQUIRES)
@click.option("--requests", type=click.Choice(list(REQUESTS)), help=REQUESTS_HELP)
@data_option
@with_database
async def edit(
    name: str,
    new_name: str | None,
    description: str | None,
    allow: tuple[str, ...],
    forbid: tuple[str, ...],
    required: bool | None,
    requests: str | None,
) -> None:
    """Change a role. Open pages of its users are updated.

    Returns when all workers apply the change, and prints the permissions that the role now has.
    """
    found = await find_role(name)
    permissions = (set(found.known) | set(map(Permission, allow))) - set(map(Permission, forbid))
    name = found.name if new_name is None else validated(validation.check_role_name, new_name)
    if description is None:
        description = found.description
    await found.edit(
        name=name,
        description=validated(validation.check_description, description),
        permissions=permissions,
        requires_factor=required,
        requestable=REQUESTS[requests] if requests else KEEP,
        by=SYSTEM,
    )
    await wait_until_enforced(None)
    only = found.requires_factor if required is None else required
    echo(
        f"The role {name} allows {', '.join(sorted(permissions)) or 'nothing'}"
        f"{', only with a second factor' if only else ''}."
    )


@role.command()
@click.argument("name")
@data_option
@with_database
async def delete(name: str) -> None:
    """Delete a role. Ends all sessions of its users.

    Returns when no worker accepts these sessions, and prints how many users had the role. Fails for
    a built-in role.
    """
    found = await find_role(name)
    event = await found.remove(by=SYSTEM)
    reach = await wait_until_enforced(event)
    holders = holders_when_deleted(event)
    echo(f"Deleted the role {found.name}. Users who had it: {holders}.{reach}")
