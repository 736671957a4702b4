"""Pages for those in charge."""

from quartapp.routes.admin import events, invitations, leaving, roles, sessions, users

MODULES = (users, leaving, invitations, roles, sessions, events)
