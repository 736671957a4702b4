"""Pages for those in charge."""

from quartapp.routes.admin import events, invitations, roles, sessions, users

MODULES = (users, invitations, roles, sessions, events)
