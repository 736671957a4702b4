"""The home page, and /api/me, which says who is signed in."""

from typing import Any

from quart import Blueprint, render_template
from quart_auth import login_required

from quartapp.auth import current_user
from quartapp.models import Post

blueprint = Blueprint("front", __name__)


@blueprint.get("/")
async def home() -> str:
    """Show the home page; to a signed-in user with the five newest posts."""
    posts = await Post.page(limit=5) if current_user.signed_in else []
    return await render_template("home.html", posts=posts)


@blueprint.get("/api/me")
@login_required
async def me() -> dict[str, Any]:
    """Return the username, roles, permissions, session id and version of the signed-in user as
    JSON; 401 JSON if there is none."""
    who = current_user.principal
    return {
        "username": who.username,
        "roles": list(who.roles),
        "permissions": sorted(who.permissions),
        "session": str(who.session_id),
        "version": who.version,
    }
