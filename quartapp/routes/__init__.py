"""Pages. A route finds, asks whether one may, validates, does, and answers."""

from quart import Quart, Response, request

from quartapp.routes import (
    accounts,
    addresses,
    admin,
    errors,
    exports,
    factors,
    front,
    health,
    invitations,
    leaving,
    letters,
    notices,
    passkeys,
    passwords,
    posts,
    profiles,
    receipts,
    recovery,
    second_step,
    sessions,
    timeline,
)
from quartapp.settings import Settings

PUBLIC = (
    front,
    accounts,
    invitations,
    second_step,
    recovery,
    addresses,
    factors,
    passwords,
    passkeys,
    sessions,
    timeline,
    notices,
    exports,
    leaving,
    posts,
    profiles,
    receipts,
    health,
)


def init_app(app: Quart, settings: Settings) -> None:
    for module in PUBLIC:
        app.register_blueprint(module.blueprint)
    for module in admin.MODULES:
        app.register_blueprint(module.blueprint, url_prefix="/admin")
    if not settings.production and not settings.sends_mail:
        app.register_blueprint(letters.blueprint)
        app.jinja_env.globals["letters_kept"] = True
    app.jinja_env.globals["verification_required"] = settings.verification_required
    app.jinja_env.filters["receipt"] = receipts.element
    errors.init_app(app)
    with_token = (rule for rule in app.url_map.iter_rules() if "token" in rule.arguments)
    for name in {rule.endpoint.split(".")[0] for rule in with_token}:
        app.after_request_funcs[name].append(tell_nobody)


async def tell_nobody(response: Response) -> Response:
    """The address opens something: it is told to nobody, not even to ourselves."""
    if "token" in (request.view_args or {}):
        response.headers["Referrer-Policy"] = "no-referrer"
    return response
