"""What the applications share: the users, and what quartapp's page needs to be rendered."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jinja2
from markupsafe import Markup
from wtforms import PasswordField
from wtforms.validators import EqualTo, InputRequired

COUNT = 16
USERNAMES = [f"peer{number}" for number in range(COUNT)]
PASSWORD = os.environ["PEERS_PASSWORD"]
MONGODB_URI = os.environ["PEERS_MONGODB_URI"]
SECRET_KEY = os.environ["PEERS_SECRET_KEY"]
PERMISSIONS = {"member": ["posts.write"]}

PACKAGE = Path(__file__).parents[3] / "quartapp"
TEMPLATES = PACKAGE / "templates"
TEMPLATE = "accounts/password.html"
PATH = "/account/password"


class PasswordFields:
    """The fields of quartapp's form, to mix into a form class."""

    carried = False
    current_password = PasswordField(
        "Current password", validators=[InputRequired("Enter your current password.")]
    )
    password = PasswordField(
        "New password",
        description="At least 8 characters. A few unrelated words make a good password.",
        validators=[InputRequired("Enter a password.")],
    )
    confirm = PasswordField(
        "Repeat new password",
        validators=[
            InputRequired("Enter the password again."),
            EqualTo("password", message="The passwords do not match."),
        ],
    )


class Viewer:
    """The properties of the signed-in user that the layout reads, to mix into a user class.

    Those without an equivalent in the other stacks are constants.
    """

    signed_in = True
    cursor, version, unread = "0", 1, 1
    withheld = ()
    language = timezone = theme = None

    @property
    def user_id(self) -> str:
        return str(self.id)  # type: ignore[attr-defined]

    session_id = user_id

    @property
    def permissions(self) -> list[str]:
        return sorted({each for role in self.roles for each in PERMISSIONS[role]})  # type: ignore[attr-defined]

    def may(self, permission: str) -> bool:
        return permission in self.permissions


def prepare(env: jinja2.Environment) -> None:
    """Set the options and globals of quartapp's Jinja environment."""
    env.trim_blocks = env.lstrip_blocks = True
    stamped = {
        path.name: f"/static/{path.name}?v={hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        for path in (PACKAGE / "static").iterdir()
        if path.is_file()
    }
    env.globals.update(site_name="quartapp", static=stamped.__getitem__, needs=needs)
    # These modules need only Jinja, which the package around them does not.
    package = sys.modules["quartapp"] = ModuleType("quartapp")
    package.__path__ = [str(PACKAGE)]
    importlib.import_module("quartapp.i18n.templates").install(env)
    icons = load("icons")
    env.globals["icon"] = icons.renderer(PACKAGE / "static/icons.svg", stamped["icons.svg"])
    env.globals["avatar"] = icons.avatar
    render = load("navigation").renderer(env)

    def navigation(user: Any, path: str, csrf_field: str) -> Markup:
        permissions = frozenset(user.permissions)
        viewer = SimpleNamespace(
            signed_in=True,
            username=user.username,
            user_id=user.user_id,
            permissions=permissions,
            unread=user.unread,
            open_requests=0,
        )
        return render(viewer, path, csrf_field)

    env.globals["navigation"] = navigation
    env.globals["zone_name"] = lambda: "UTC"
    env.globals["timezone_cookie"] = lambda: "timezone=%; path=/; max-age=31536000; samesite=lax"
    env.globals["script_texts"] = load("script_texts").element
    # The footer then has the same link as quartapp's without a mail server.
    env.globals["letters_kept"] = True


def load(name: str) -> Any:
    """Return a module of quartapp.routes that needs only Jinja, without the package around it."""
    spec = spec_from_file_location(name, PACKAGE / f"routes/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@jinja2.pass_context
def needs(context: jinja2.runtime.Context, *permissions: str) -> Markup:
    """Return the attributes of an element for users who have one of the permissions."""
    words = " ".join(permissions)
    user: Any = context["current_user"]
    shown = any(user.may(word) for word in words.split())
    return Markup('data-needs="{}"{}').format(words, "" if shown else Markup(" hidden"))
