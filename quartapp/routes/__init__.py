"""The pages and their routes.

A view finds its documents, checks the permission, validates the form, calls a model and answers.
"""

from quart import Quart, Response, request

from quartapp.routes import dev_components, dev_mail, errors, health, home
from quartapp.routes.accounts import admin as admin_accounts
from quartapp.routes.accounts import area, email_address, password, password_reset, profiles
from quartapp.routes.accounts import bulk as admin_bulk
from quartapp.routes.accounts import pages as accounts
from quartapp.routes.accounts import previews as admin_previews
from quartapp.routes.accounts import user_list as admin_user_list
from quartapp.routes.accounts import user_pages as admin_user_pages
from quartapp.routes.audit import activity, receipts, undo
from quartapp.routes.audit import admin as admin_audit
from quartapp.routes.dashboard import pages as dashboard
from quartapp.routes.factors import pages as factors
from quartapp.routes.factors import passkeys
from quartapp.routes.invitations import admin as admin_invitations
from quartapp.routes.invitations import pages as invitations
from quartapp.routes.notifications import links
from quartapp.routes.notifications import pages as notifications
from quartapp.routes.posts import pages as posts
from quartapp.routes.privacy import account_deletion, export
from quartapp.routes.privacy import admin as admin_privacy
from quartapp.routes.roles import account as account_roles
from quartapp.routes.roles import admin as admin_roles
from quartapp.routes.roles import decisions as admin_requests
from quartapp.routes.sessions import admin as admin_sessions
from quartapp.routes.sessions import pages as sessions
from quartapp.routes.sessions import second_step
from quartapp.settings import Settings

PUBLIC = (
    home,
    accounts,
    area,
    invitations,
    second_step,
    password_reset,
    email_address,
    factors,
    password,
    passkeys,
    sessions,
    activity,
    notifications,
    account_roles,
    export,
    account_deletion,
    posts,
    profiles,
    receipts,
    health,
)
ADMIN = (
    dashboard,
    admin_accounts,
    admin_user_list,
    admin_user_pages,
    admin_bulk,
    admin_previews,
    admin_audit,
    admin_invitations,
    admin_privacy,
    admin_requests,
    admin_roles,
    admin_sessions,
    undo,
)


def init_app(app: Quart, settings: Settings) -> None:
    """Register the blueprints, those of ADMIN under /admin, and the error handlers.

    In development also the component page and, without SMTP_HOST, the pages of stored emails.
    Also sets globals and filters of the templates, and `hide_referrer` for blueprints with a
    token in a URL.
    """
    for module in PUBLIC:
        app.register_blueprint(module.blueprint)
    for module in ADMIN:
        app.register_blueprint(module.blueprint, url_prefix="/admin")
    if not settings.production:
        app.register_blueprint(dev_components.blueprint)
    if not settings.production and not settings.sends_mail:
        app.register_blueprint(dev_mail.blueprint)
        app.jinja_env.globals["letters_kept"] = True
    app.jinja_env.globals["verification_required"] = settings.verification_required
    app.jinja_env.filters["receipt"] = receipts.element
    app.jinja_env.filters["notice_address"] = links.address
    app.jinja_env.filters["undo"] = undo.offered
    errors.init_app(app)
    with_token = (rule for rule in app.url_map.iter_rules() if "token" in rule.arguments)
    for name in {rule.endpoint.split(".")[0] for rule in with_token}:
        app.after_request_funcs[name].append(hide_referrer)


async def hide_referrer(response: Response) -> Response:
    """Set Referrer-Policy: no-referrer on pages whose URL contains a token."""
    if "token" in (request.view_args or {}):
        response.headers["Referrer-Policy"] = "no-referrer"
    return response
