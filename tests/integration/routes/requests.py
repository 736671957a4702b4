"""Requests for the rows of the permission matrix: objects to act on, paths and forms."""

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlencode

from beanie import PydanticObjectId
from quart import Quart

from quartapp import clock
from quartapp.activities import ACCOUNT_ENABLED, PASSWORD_RESET
from quartapp.email.transports import MailFolder
from quartapp.models import (
    Comment,
    Event,
    Invitation,
    Passkey,
    Post,
    Role,
    RoleRequest,
    Token,
    User,
)
from quartapp.models.accounts import email_address
from quartapp.models.accounts.bulk_action import Action as BulkChoice
from quartapp.models.accounts.bulk_action import BulkAction
from quartapp.models.accounts.one_time_token import Purpose, code_digest, issue_setup
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.tokens import new_token
from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.integration.routes.authenticator import app_code, codes_on, secret_on
from tests.integration.routes.conftest import Answer, Visitor, Visitors, user_named
from tests.integration.routes.permission_matrix import Row
from tests.security_key import Authenticator, create_passkey

CODE = "123456"
LINKS = {"/reset": Purpose.RESET, "/verify": Purpose.CONFIRM, "/undo": Purpose.UNDO}


def settings_of(app: Quart) -> Settings:
    return runtime_of(app).settings


async def author_with_content(
    visitors: Visitors, name: str = "eve", rule: str | None = None
) -> tuple[Visitor, dict[str, str]]:
    """Return an author with a post, a comment and so on, and the parts of the paths to them.

    With the rule of a route, only with what its path needs, which takes a third of the time.
    """

    def needs(part: str) -> bool:
        return rule is None or part in rule

    author = await visitors.with_permissions(name, Permission.POSTS_WRITE)
    await unverify(author)
    by = Actor((await user_named(name)).id, name)
    role = await Role.add(f"spare-{name}", "", [], by=SYSTEM)
    await MailFolder(settings_of(visitors.app).data / "mail").send("letter", "", EmailMessage())
    parts = {
        "/dev/mail/<name>": "/dev/mail/letter",
        "filename": "app.css",
        "seq": "1",
        "passkey_id": str(PydanticObjectId()),
        "username": name,
        "role_name": f"role-of-{name}",
        "name": role.name,
    }
    if needs("<post_id>") or needs("<comment_id>"):
        post = await Post.write("A title", "Some text.", by=by)
        comment = await Comment.write(post, "A comment.", by=by)
        assert comment is not None
        parts |= {"post_id": str(post.id), "comment_id": str(comment.id)}
    if needs("<session_id>"):
        parts["session_id"] = await author.session_id()
    if needs("<request_id>"):
        parts["request_id"] = await ask_for_role(name, f"wanted-{name}")
    if needs("<event_id>"):
        enabled = await Event.record(ACCOUNT_ENABLED, by=SYSTEM, subject=by.user_id)
        parts["/admin/events/<event_id>/undo"] = f"/admin/events/{enabled.id}/undo"
        parts["event_id"] = await record_suspicious_event(author)
    if needs("<bulk_id>"):
        parts["bulk_id"] = await record_bulk_action(author)
    if needs("<invitation_id>") or needs("<token>"):
        invitation, invited = await create_invitation(f"guest-of-{name}@example.org")
        parts |= {"invitation_id": str(invitation.id), "/invited/<token>": f"/invited/{invited}"}
    if needs("<token>") or needs("/verify"):
        for link, purpose in LINKS.items():
            parts[f"{link}/<token>"] = f"{link}/{await issue_token(author, purpose)}"
        parts["token"] = await issue_setup() or "spent"
    return author, parts


async def ask_for_role(name: str, role_name: str) -> str:
    """Create a role, and a request of the user for it. Return the id of the request."""
    role, user = await Role.add(role_name, "", [], by=SYSTEM), await user_named(name)
    return str((await RoleRequest.ask(user, role, "A reason.", by=Actor(user.id, name))).id)


async def unverify(visitor: Visitor) -> None:
    """Mark the email address of the visitor as not verified."""
    unverified = {"email_verified_at": None}
    assert await User.change({"username": visitor.username}, {"$set": unverified})


async def record_suspicious_event(visitor: Visitor) -> str:
    """Record an event in the visitor's activity that they can report. Return its id."""
    user = await user_named(visitor.username)
    by = Actor(user.id, user.username, "192.0.2.9")
    return str((await Event.record(PASSWORD_RESET, by=by, subject=user.id)).id)


async def record_bulk_action(visitor: Visitor) -> str:
    """Store an action that the visitor did to themselves and others. Return its id."""
    user = await user_named(visitor.username)
    by = Actor(user.id, user.username)
    return str((await BulkAction.begin(BulkChoice.END_SESSIONS, None, [user], by=by)).id)


async def sign_in_to_closed_account(visitors: Visitors, name: str) -> Visitor:
    """Return a visitor who has deactivated their account and signed in again."""
    visitor = await visitors.with_permissions(name)
    user = await user_named(name)
    await user.deactivate(by=Actor(user.id, name))
    visitor = visitor.another_device()
    answer = await visitor.sign_in()
    assert (answer.status, answer.location) == (303, "/account/closed"), answer.text
    return visitor


async def issue_token(visitor: Visitor, purpose: Purpose) -> str:
    """Issue a token for an email to the visitor, with `CODE` as its code."""
    user, token_id = await user_named(visitor.username), PydanticObjectId()
    code = code_digest(settings_of(visitor.app).secret_key.get_secret_value(), token_id, CODE)
    return await Token.issue(
        token_id, purpose, user, user.email, lasts=email_address.LASTS, code=code
    )


async def create_invitation(email: str, **fields: Any) -> tuple[Invitation, str]:
    """Create an invitation and return it with its token."""
    now, (token, digest) = clock.now(), new_token()
    until = now + timedelta(days=7)
    made = Invitation(
        **{"email": email, "created_at": now, "asked_at": now, "expires_at": until, **fields},
        digest=digest,
    )
    return await made.insert(), token


def sufficient_permissions(row: Row) -> list[Permission]:
    """Return the permissions that the row needs. Managing the author needs the author's, too, and
    undoing what was done to the author needs those of managing."""
    undo = row.rule.endswith("/undo")
    of_users = (
        "/users/<username>",
        "<request_id>",
        "/users/bulk",
        "/users/new",
        "/<session_id>/end",
    )
    of_user = any(part in row.rule for part in of_users)
    authors = [Permission.POSTS_WRITE] if undo or of_user else []
    managing = [Permission.USERS_MANAGE] if undo else []
    return [Permission(row.permissions[0]), *authors, *managing]


def path(row: Row, parts: Mapping[str, str]) -> str:
    if row.rule in parts:
        return parts[row.rule]
    if row.rule == "/admin/users/bulk" and row.method == "GET" and "username" in parts:
        return f"{row.rule}?{urlencode(form(row, parts['username']))}"
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda part: parts[part[1]], row.rule)


async def form_with_code(row: Row, visitor: Visitor, name: str) -> dict[str, str]:
    """Return the same as `form`, with codes and credentials for this visitor."""
    if row.rule == "/account/factors/totp" and visitor.username:
        return {"code": app_code(secret_on(await visitor.get(row.rule)))}
    if row.rule == "/login/factor" and visitor.codes:
        return {"code": visitor.codes[0]}
    if row.rule == "/account/factors/passkeys" and visitor.username:
        asked = await options(visitor, f"{row.rule}/options")
        return {"name": "Phone", "credential": Authenticator().register(asked)}
    if row.rule == "/login/passkey":
        device = await create_passkey(await user_named(name))
        return {"credential": device.authenticate(await options(visitor, f"{row.rule}/options"))}
    return form(row, name)


async def with_own_passkey(visitor: Visitor, row: Row, parts: Mapping[str, str]) -> dict[str, str]:
    """Return the parts, with the id of a new passkey of the visitor if the row needs one."""
    if "<passkey_id>" not in row.rule:
        return dict(parts)
    added = await add_passkey(visitor, Authenticator())
    visitor.codes = codes_on(await visitor.get(added.location))
    (passkey,) = await Passkey.of_user((await user_named(visitor.username)).id)
    return {**parts, "passkey_id": str(passkey.id)}


async def options(visitor: Visitor, path: str) -> dict[str, Any]:
    """Return the WebAuthn options at this path."""
    answer = await visitor.get(path)
    assert answer.status == 200, answer.text
    return json.loads(answer.text)


async def add_passkey(visitor: Visitor, device: Authenticator, **fields: str) -> Answer:
    home = "/account/factors/passkeys"
    credential = device.register(await options(visitor, f"{home}/options"))
    return await visitor.post(home, **{"name": "Phone", "credential": credential, **fields})


def form(row: Row, name: str) -> dict[str, str]:
    """Return fields with which the POST succeeds."""
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
        "/invited/<token>": account,
        "/login": {"login": name, "password": PASSWORD},
        "/confirm": {"password": PASSWORD},
        "/account/password": {
            "current_password": PASSWORD,
            "password": changed,
            "confirm": changed,
        },
        "/account/factors/passkeys/<passkey_id>/rename": {"name": "Tablet"},
        "/forgot": {"email": f"{name}@example.org"},
        "/reset/<token>": {"password": changed, "confirm": changed},
        "/account/delete": {"username": name},
        "/admin/users/<username>/delete": {"username": name},
        "/account/email": {"email": f"new-{name}@example.org"},
        "/verify": {"code": CODE},
        "/verify/<token>": {"password": PASSWORD},
        "/posts/new": {"title": "New", "body": "Text."},
        "/posts/<post_id>/edit": {"title": "Edited", "body": "Text."},
        "/posts/<post_id>/comments": {"body": "Another."},
        "/account/roles": {"role": "member", "reason": "A reason."},
        "/admin/users/new": {
            "username": f"made-{name}",
            "email": f"made-{name}@example.org",
        },
        "/admin/users/bulk": {"users": name, "action": "grant", "role": f"spare-{name}"},
        "/admin/users/<username>/grants": {"role": f"spare-{name}"},
        "/admin/invitations": {"email": f"new-{name}@example.org", "role": f"spare-{name}"},
        "/admin/users/<username>/last-day": {"date": f"{clock.now():%Y-%m-%d}"},
        "/admin/roles/new": {"name": f"made-{name}"},
        "/admin/roles/<name>": {"name": f"renamed-{name}"},
    }.get(row.rule, {})
