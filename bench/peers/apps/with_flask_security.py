"""Flask-Security with its MongoEngine datastore, as in the quick start of its documentation.

The session is Flask's signed cookie with the user's `fs_uniquifier`. Flask-Security reads the user
from the database in each request, and MongoEngine reads the roles when they are used.
"""

# The packages are in an environment of their own (bench/peers/requirements.txt), where the type
# checker does not look, so it does not know what the fields of a document contain.
# pyright: reportMissingImports=false, reportOptionalIterable=false

from __future__ import annotations

from typing import Any

import mongoengine
from flask import Flask, render_template, request
from flask_security import (
    MongoEngineUserDatastore,
    RoleMixin,
    Security,
    UserMixin,
    auth_required,
    current_user,
    hash_password,
)
from flask_wtf import CSRFProtect, FlaskForm
from flask_wtf.csrf import generate_csrf
from markupsafe import Markup
from mongoengine import BooleanField, Document, ListField, ReferenceField, StringField

from bench.peers.apps import page

app = Flask(__name__, template_folder=str(page.TEMPLATES), static_folder=None)
app.secret_key = page.SECRET_KEY
app.config["SECURITY_PASSWORD_SALT"] = page.SECRET_KEY
CSRFProtect(app)
page.prepare(app.jinja_env)
db = mongoengine.connect("peers_security", host=page.MONGODB_URI)


class Role(Document, RoleMixin):
    name = StringField(max_length=80, unique=True)
    description = StringField(max_length=255)
    permissions = ListField(StringField())


class User(page.Viewer, Document, UserMixin):
    username = StringField(max_length=32, unique=True)
    email = StringField(max_length=255, unique=True)
    password = StringField(max_length=255)
    active = BooleanField(default=True)
    fs_uniquifier = StringField(max_length=64, unique=True)
    roles = ListField(ReferenceField(Role), default=[])

    @property
    def permissions(self) -> list[str]:
        return sorted({each for role in self.roles for each in role.permissions})


class PasswordForm(page.PasswordFields, FlaskForm):
    pass


users = MongoEngineUserDatastore(db, User, Role)
security = Security(app, users)


@app.context_processor
def layout() -> dict[str, Any]:
    field = '<input type="hidden" name="csrf_token" value="{}">'
    return {"path": request.path, "csrf_field": lambda: Markup(field).format(generate_csrf())}


@app.get(page.PATH)
@auth_required()
def password() -> str:
    return render_template(page.TEMPLATE, form=PasswordForm(), action=request.path)


@app.get("/api/me")
@auth_required()
def me() -> dict[str, Any]:
    return {
        "username": current_user.username,
        "roles": [role.name for role in current_user.roles],
        "permissions": current_user.permissions,
    }


with app.app_context():
    member = users.create_role(name="member", permissions=page.PERMISSIONS["member"])
    hashed = hash_password(page.PASSWORD)
    for name in page.USERNAMES:
        users.create_user(
            username=name, email=f"{name}@example.org", password=hashed, roles=[member]
        )
