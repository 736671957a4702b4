"""The groups of commands, whose commands are imported when they are needed."""

from __future__ import annotations

from quartapp.cli.base import LazyGroup

user = LazyGroup("user", module="quartapp.cli.users", help="Create, show and change user accounts.")
role = LazyGroup("role", module="quartapp.cli.roles", help="List, create, edit and delete roles.")
audit = LazyGroup("audit", module="quartapp.cli.audit", help="Verify and export the audit log.")
