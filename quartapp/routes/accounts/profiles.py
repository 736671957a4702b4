"""Profile pages, for all signed-in users."""

import asyncio

from quart import Blueprint, abort, render_template
from quart_auth import login_required

from quartapp.models import Post, Role, User
from quartapp.models.posts import post as posts
from quartapp.routes.pagination import cut, id_after

blueprint = Blueprint("profiles", __name__)


@blueprint.get("/users/<username>")
@login_required
async def show(username: str) -> str:
    """Show a user's roles and a page of their posts, newest first.

    Answers 404 for an unknown user, and for one who has registered but not verified the address.
    """
    person = await User.by_username(username)
    if person is None or person.awaits_verification:
        abort(404)
    rows, everyone = await asyncio.gather(
        Post.page(author=person.id, before=id_after(), limit=posts.PAGE + 1), Role.everyone()
    )
    shown, older = cut(rows, posts.PAGE, lambda post: post.id)
    held = person.role_ids
    roles = [role.name for role in everyone if role.id in held]
    return await render_template(
        "accounts/profile.html", person=person, roles=roles, posts=shown, older=older
    )
