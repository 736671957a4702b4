"""`quartapp role`: what roles there are, and what they allow."""

from __future__ import annotations

import click

from quartapp import validation
from quartapp.cli.base import (
    Commands,
    checked,
    in_database,
    role_named,
    say,
    settle,
    table,
    with_data,
)
from quartapp.models import Role
from quartapp.models.base.actor import NOBODY
from quartapp.policy import Permission

PERMISSION = click.Choice([permission.value for permission in Permission])

REQUIRES = "Whether it gives anything to those without a second factor."


@click.group(cls=Commands)
def role() -> None:
    """Roles: list, create, edit, delete."""


@role.command("list")
@with_data
@in_database
async def list_roles() -> None:
    """List the roles, who holds them and what they allow."""
    holders = await Role.holders()
    rows = [
        [
            found.name,
            holders.get(found.id, 0),
            ", ".join([*found.known, *(f"{name} (unknown)" for name in found.unknown)]),
            "required" * found.requires_factor,
        ]
        for found in await Role.everyone()
    ]
    table(["NAME", "HELD BY", "PERMISSIONS", "FACTOR"], rows)


@role.command()
@click.argument("name")
@click.option("--description", default="")
@click.option("--permission", "permissions", multiple=True, type=PERMISSION)
@click.option("--require-factor/--no-require-factor", "required", help=REQUIRES)
@with_data
@in_database
async def create(name: str, description: str, permissions: tuple[str, ...], required: bool) -> None:
    """Make a role."""
    name = checked(validation.check_role_name, name)
    description = checked(validation.check_description, description)
    made = await Role.add(
        name,
        description,
        {Permission(p) for p in permissions},
        requires_factor=required,
        by=NOBODY,
    )
    say(f"The role {made.name} was made.")


@role.command()
@click.argument("name")
@click.option("--allow", multiple=True, type=PERMISSION)
@click.option("--forbid", multiple=True, type=PERMISSION)
@click.option("--require-factor/--no-require-factor", "required", default=None, help=REQUIRES)
@with_data
@in_database
async def edit(
    name: str, allow: tuple[str, ...], forbid: tuple[str, ...], required: bool | None
) -> None:
    """Change what a role allows. Open pages of those who hold it follow."""
    found = await role_named(name)
    permissions = (set(found.known) | set(map(Permission, allow))) - set(map(Permission, forbid))
    await found.edit(
        name=found.name,
        description=found.description,
        permissions=permissions,
        requires_factor=required,
        by=NOBODY,
    )
    await settle(None)
    only = found.requires_factor if required is None else required
    say(
        f"The role {found.name} allows {', '.join(sorted(permissions)) or 'nothing'}"
        f"{', with a second factor only' if only else ''}."
    )


@role.command()
@click.argument("name")
@with_data
@in_database
async def delete(name: str) -> None:
    """Delete a role. The sessions of those who hold it are ended."""
    found = await role_named(name)
    event = await found.remove(by=NOBODY)
    reach = await settle(event)
    holders = event.details["holders"] if event else 0
    say(f"The role {found.name} was deleted; {holders} held it.{reach}")
