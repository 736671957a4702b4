"""Pages. A route finds, asks whether one may, validates, does, and answers."""

from quart import Quart

from quartapp.routes import (
    accounts,
    admin,
    errors,
    front,
    health,
    notices,
    passwords,
    posts,
    profiles,
    sessions,
)


def init_app(app: Quart) -> None:
    for module in (front, accounts, passwords, sessions, notices, posts, profiles, health):
        app.register_blueprint(module.blueprint)
    for module in admin.MODULES:
        app.register_blueprint(module.blueprint, url_prefix="/admin")
    errors.init_app(app)
