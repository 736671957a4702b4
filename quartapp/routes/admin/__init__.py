"""Pages for those in charge."""

from quartapp.routes.admin import events, roles, sessions, users

MODULES = (users, roles, sessions, events)
