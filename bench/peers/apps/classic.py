"""The classic stack: Flask, Flask-Login, Flask-WTF, Flask-Bcrypt and MongoEngine.

The session is Flask's signed cookie with the user's id. Flask-Login's user loader reads the user
from the database in each request. The roles are names in the user's document.
"""

# The packages are in an environment of their own (bench/peers/requirements.txt), where the type
# checker does not look, so it knows neither the fields of a document nor those of a form.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import mongoengine
from flask import Flask, redirect, render_template, request
from flask_bcrypt import Bcrypt
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from flask_wtf import CSRFProtect, FlaskForm
from flask_wtf.csrf import generate_csrf
from markupsafe import Markup
from mongoengine import Document, ListField, StringField
from wtforms import PasswordField
from wtforms import StringField as TextField
from wtforms.validators import InputRequired

from bench.peers.apps import page

app = Flask(__name__, template_folder=str(page.TEMPLATES), static_folder=None)
app.secret_key = page.SECRET_KEY
bcrypt = Bcrypt(app)
CSRFProtect(app)
login_manager = LoginManager(app)
login_manager.login_view = "login"
page.prepare(app.jinja_env)
mongoengine.connect("peers_classic", host=page.MONGODB_URI)


class User(page.Viewer, UserMixin, Document):
    username = StringField(max_length=32, unique=True)
    email = StringField(max_length=255, unique=True)
    password_hash = StringField()
    roles = ListField(StringField())


class LoginForm(FlaskForm):
    username = TextField(validators=[InputRequired()])
    password = PasswordField(validators=[InputRequired()])


class PasswordForm(page.PasswordFields, FlaskForm):
    pass


@login_manager.user_loader
def load_user(user_id: str) -> User | None:
    return User.objects(pk=user_id).first()


@app.context_processor
def layout() -> dict[str, Any]:
    field = '<input type="hidden" name="csrf_token" value="{}">'
    return {"path": request.path, "csrf_field": lambda: Markup(field).format(generate_csrf())}


@app.route("/login", methods=["GET", "POST"])
def login() -> Any:
    form = LoginForm()
    if form.validate_on_submit():
        user = User.objects(username=form.username.data).first()
        if user and bcrypt.check_password_hash(user.password_hash, form.password.data or ""):
            login_user(user)
            return redirect("/")
    return f"<form method=post>{form.csrf_token} {form.username} {form.password}</form>"


@app.get(page.PATH)
@login_required
def password() -> str:
    return render_template(page.TEMPLATE, form=PasswordForm(), action=request.path)


@app.get("/api/me")
@login_required
def me() -> dict[str, Any]:
    return {
        "username": current_user.username,
        "roles": list(current_user.roles),
        "permissions": current_user.permissions,
    }


hashed = bcrypt.generate_password_hash(page.PASSWORD).decode()
for name in page.USERNAMES:
    User(username=name, email=f"{name}@example.org", password_hash=hashed, roles=["member"]).save()
