"""What the rows of the matrix are driven with: things to act on, the paths to them, the forms."""

import re
from collections.abc import Mapping
from email.message import EmailMessage

from beanie import PydanticObjectId
from quart import Quart

from quartapp.mail.carriers import Folder
from quartapp.models import Comment, Post, Role, Token, address
from quartapp.models.actor import NOBODY, Actor
from quartapp.models.token import Purpose, code_digest, issue_setup
from quartapp.policy import Permission
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.routes.conftest import Town, Visitor, the_user
from tests.routes.matrix import Row

CODE = "123456"


def settings_of(app: Quart) -> Settings:
    return app.extensions["quartapp"].settings


async def scene(town: Town, name: str = "eve") -> tuple[Visitor, dict[str, str]]:
    """An author with a post, a comment, a role and a session; and the parts of paths to them."""
    author = await town.holder(name, Permission.POSTS_WRITE)
    by = Actor((await the_user(name)).id, name)
    post = await Post.write("A title", "Some text.", by=by)
    comment = await Comment.write(post, "A comment.", by=by)
    assert comment is not None
    me = await author.me()
    assert me is not None
    role = await Role.add(f"spare-{name}", "", [], by=NOBODY)
    await Folder(settings_of(town.app).data / "mail").carry("letter", "", EmailMessage())
    return author, {
        "/reset/<token>": f"/reset/{await a_link(author, Purpose.RESET)}",
        "/verify/<token>": f"/verify/{await a_link(author, Purpose.CONFIRM)}",
        "/dev/mail/<name>": "/dev/mail/letter",
        "filename": "app.css",
        "token": await issue_setup() or "spent",
        "session_id": me["session"],
        "post_id": str(post.id),
        "comment_id": str(comment.id),
        "username": name,
        "role_name": f"role-of-{name}",
        "name": role.name,
    }


async def a_link(visitor: Visitor, purpose: Purpose) -> str:
    """A token as a letter to them has it, beside the code of `form`."""
    user, token_id = await the_user(visitor.username), PydanticObjectId()
    code = code_digest(settings_of(visitor.app).secret_key.get_secret_value(), token_id, CODE)
    return await Token.issue(token_id, purpose, user, user.email, lasts=address.LASTS, code=code)


def path(row: Row, parts: Mapping[str, str]) -> str:
    if row.rule in parts:
        return parts[row.rule]
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda part: parts[part[1]], row.rule)


def form(row: Row, name: str) -> dict[str, str]:
    """Fields with which the route does what it is there for."""
    account = {
        "username": f"new-{name}",
        "email": f"new-{name}@example.org",
        "password": PASSWORD,
        "confirm": PASSWORD,
    }
    changed = f"{PASSWORD} changed"
    return {
        "/register": account,
        "/setup/<token>": account,
        "/login": {"login": name, "password": PASSWORD},
        "/confirm": {"password": PASSWORD},
        "/account/password": {
            "current_password": PASSWORD,
            "password": changed,
            "confirm": changed,
        },
        "/forgot": {"email": f"{name}@example.org"},
        "/reset/<token>": {"password": changed, "confirm": changed},
        "/account/email": {"email": f"new-{name}@example.org"},
        "/verify": {"code": CODE},
        "/posts/new": {"title": "New", "body": "Text."},
        "/posts/<post_id>/edit": {"title": "Edited", "body": "Text."},
        "/posts/<post_id>/comments": {"body": "Another."},
        "/admin/users/<username>/grants": {"role": "moderator"},
        "/admin/roles/new": {"name": f"made-{name}"},
        "/admin/roles/<name>": {"name": f"renamed-{name}"},
    }.get(row.rule, {})
