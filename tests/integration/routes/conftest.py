"""Visitors of the application in this process: browsers with cookies, but without a network."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request

import pytest
from beanie import PydanticObjectId
from bson import json_util
from limits import parse
from quart import Quart, Response
from quart.testing.client import _TestCookieJarResponse
from quart.typing import TestClientProtocol as Client
from werkzeug.datastructures import Headers

from quartapp import auth, clock, create_app
from quartapp.email.transports import MailFolder
from quartapp.models import Role, Session, User
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from quartapp.routes.sessions.sign_in import sign_in
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.integration.models.helpers import role_names
from tests.people import until

ORIGIN = "http://localhost"
SESSION_COOKIE = "quartapp_session"


@dataclass
class Answer:
    """A response and its body."""

    response: Response
    text: str

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Headers:
        return self.response.headers

    @property
    def location(self) -> str:
        return self.response.headers.get("Location", "")

    @property
    def links(self) -> list[str]:
        return [html.unescape(href) for href in re.findall(r'<a [^>]*?href="([^"]*)"', self.text)]

    def link(self, rel: str) -> str:
        """Return the address of the link with this `rel`, or an empty text."""
        found = re.search(rf'<a [^>]*?href="([^"]*)" rel="{rel}"', self.text)
        return html.unescape(found[1]) if found else ""

    @property
    def fields(self) -> dict[str, str]:
        """Return the values of the form fields of this page by name."""
        reader = _Fields()
        reader.feed(self.text)
        return reader.found

    def error(self, name: str) -> str:
        """Return the error message of a field, or an empty text."""
        # The ids of the sign-in forms begin with "sign-in-".
        found = re.search(rf'id="(?:sign-in-)?{name}-error">([^<]*)<', self.text)
        return html.unescape(found[1]) if found else ""

    @property
    def anonymized(self) -> str:
        """Return the page without the CSRF tokens, which are masked differently each time."""
        return re.sub(r'(name="csrf_token" value=")[^"]*', r"\1", self.text)


class _Fields(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._area = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        name = attributes.get("name") or ""
        if tag == "input" and attributes.get("type") not in ("checkbox", "radio", "search"):
            self.found[name] = attributes.get("value") or ""
        elif tag == "textarea":
            self._area, self.found[name] = name, ""

    def handle_data(self, data: str) -> None:
        if self._area:
            self.found[self._area] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            # A browser drops the line break that WTForms writes after the opening tag.
            self.found[self._area] = self.found[self._area].replace("\r\n", "\n").removeprefix("\n")
            self._area = ""


@dataclass
class Visitor:
    """One browser: a cookie jar, and the headers that a page of this site makes it send.

    `codes` are the recovery codes that its user has.
    """

    app: Quart
    username: str = ""
    password: str = PASSWORD
    scheme: str = "http"
    address: str = "127.0.0.1"
    codes: list[str] = field(default_factory=list)
    client: Client = field(init=False)
    _csrf_tokens: dict[frozenset[tuple[str, str | None]], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = self.app.test_client()

    @property
    def email(self) -> str:
        return f"{self.username}@example.org"

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        response = await self.client.open(
            path, method=method, scheme=self.scheme, scope_base=self.scope, **options
        )
        assert isinstance(response, Response)
        body = await response.get_data(as_text=False)
        return Answer(response, body.decode(errors="replace"))

    @property
    def scope(self) -> dict[str, Any]:
        """Return the ASGI scope of the connection."""
        return {"client": (self.address, 50_000)}

    async def post(self, path: str, **fields: Any) -> Answer:
        """Send a form as a page of this site does. A list repeats the field.

        The CSRF token is read from a page, unless the cookies are those of an earlier POST and the
        session has not ended.
        """
        if self._cookies not in self._csrf_tokens or not await self.me():
            token = await self.csrf_token()
            # Reading a page may have set a cookie.
            self._csrf_tokens[self._cookies] = token
        return await self.send(path, {"csrf_token": self._csrf_tokens[self._cookies], **fields})

    async def send(
        self, path: str, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a POST with these fields, and without a CSRF token unless it is among them."""
        headers = {"Origin": f"{self.scheme}://localhost"} if headers is None else headers
        return await self.ask(
            "POST",
            path,
            data=urlencode(fields, doseq=True),
            headers={"Content-Type": "application/x-www-form-urlencoded", **headers},
        )

    async def csrf_token(self) -> str:
        # Each of the two pages is certain to have a form in one of the two states.
        for page in ("/", "/login") if self.token else ("/login", "/"):
            text = (await self.get(page)).text
            if found := re.search(r'name="csrf_token" value="([^"]+)"', text):
                return found[1]
        raise AssertionError("no page has a form")

    async def register(self, username: str = "", **fields: str) -> Answer:
        self.username = username or self.username
        return await self.post(
            "/register",
            **{
                "username": self.username,
                "email": self.email,
                "password": self.password,
                "confirm": self.password,
                **fields,
            },
        )

    async def sign_in(self, login: str = "", password: str = "", **fields: str) -> Answer:
        """Send the sign-in form. Query parameters such as `next` are not supported."""
        return await self.post(
            "/login", login=login or self.username, password=password or self.password, **fields
        )

    async def sign_in_without_form(self, user: User) -> None:
        """Open a session and keep its cookies, as the form does once the password is known.

        This takes half the time of the form.
        """
        async with self.app.test_request_context(
            "/login", method="POST", scheme=self.scheme, headers={"Remote-Addr": self.address}
        ):
            await auth.load_current_user()
            await sign_in(user, remember=False)
            response = await self.app.finalize_request("")
        self._jar.extract_cookies(
            _TestCookieJarResponse(response.headers), Request(f"{self.scheme}://localhost/login")
        )

    async def is_signed_out(self) -> bool:
        """Whether the visitor is signed out."""
        return await self.me() is None

    async def me(self) -> dict[str, Any] | None:
        answer = await self.get("/api/me")
        assert answer.status in (200, 401), answer.text
        return json_util.loads(answer.text) if answer.status == 200 else None

    async def session_id(self) -> str:
        """Return the id of the session. The visitor must be signed in."""
        me = await self.me()
        assert me is not None
        return me["session"]

    @property
    def token(self) -> str:
        """Return the value of the session cookie, or an empty text."""
        return next((c.value or "" for c in self._jar if c.name == SESSION_COOKIE), "")

    def copy(self) -> Visitor:
        """Return another browser with copies of the cookies, as a thief has."""
        copy = Visitor(self.app, self.username, self.password)
        for cookie in self._jar:
            copy._jar.set_cookie(cookie)
        return copy

    def another_device(self, address: str = "127.0.0.1") -> Visitor:
        return Visitor(self.app, self.username, self.password, address=address)

    async def expire_authentication(self, seconds: float = 24 * 3600) -> None:
        """Move the last authentication of the session this many seconds into the past."""
        session = PydanticObjectId(await self.session_id())
        at = clock.now() - timedelta(seconds=seconds)
        assert await Session.change({"_id": session}, {"$set": {"confirmed_at": at}})
        # Wait until every worker knows of the change.
        await runtime_of(self.app).barrier.wait()

    @property
    def _cookies(self) -> frozenset[tuple[str, str | None]]:
        return frozenset((cookie.name, cookie.value) for cookie in self._jar)

    @property
    def _jar(self) -> Any:
        return self.client.cookie_jar  # type: ignore[attr-defined]


@dataclass
class Visitors:
    """Creates visitors of an application, their accounts and their sessions, without the pages."""

    app: Quart
    scheme: str = "http"
    _hash: str = ""

    def anonymous(self) -> Visitor:
        return Visitor(self.app, scheme=self.scheme)

    async def account(self, username: str, *roles: Role) -> User:
        if not self._hash:
            self._hash = await runtime_of(self.app).hasher.hash(PASSWORD)
        return await register_account(
            *(username, f"{username}@example.org", self._hash),
            roles=list(roles),
            by=SYSTEM,
            verified=True,
        )

    async def signed_in(self, username: str, *roles: Role) -> Visitor:
        user = await self.account(username, *roles)
        visitor = Visitor(self.app, username, scheme=self.scheme)
        await visitor.sign_in_without_form(user)
        return visitor

    async def member(self, username: str = "ada") -> Visitor:
        return await self.signed_in(username, await role_named("member"))

    async def admin(self, username: str = "root") -> Visitor:
        return await self.signed_in(username, await role_named("admin"))

    async def emails(self, to: str, subject: str = "", *, count: int = 1) -> list[str]:
        """Wait for `count` emails to an address; return their texts, newest first."""
        folder = MailFolder(runtime_of(self.app).settings.data / "mail")
        found: list[str] = []

        async def arrived() -> bool:
            found[:] = [
                letter.text
                for letter in folder.newest(100)
                if letter.to == to and subject in letter.subject
            ]
            return len(found) >= count

        await until(arrived)
        return found

    async def wait_for_outbox(self) -> list[dict[str, Any]]:
        """Wait until no email is queued. Return those that could not be sent."""

        async def empty() -> bool:
            return await documents("outbox", gave_up_at=None) == []

        await until(empty)
        return await documents("outbox")

    async def with_permissions(self, username: str, *permissions: Permission) -> Visitor:
        """Return a signed-in visitor with exactly these permissions, by a role created for it."""
        role = await Role.add(f"role-of-{username}", "", permissions, by=SYSTEM)
        return await self.signed_in(username, role)


def link_in(letter: str) -> str:
    """Return the path of the link with a token in an email."""
    found = re.search(
        r"^https?://[^/\s]+(/(?:reset|verify|invited|undo)/\S+)\s*$", letter, re.MULTILINE
    )
    assert found, letter
    return found[1]


def code_in(letter: str) -> str:
    found = re.search(r": (\d{6})\s*$", letter, re.MULTILINE)
    assert found, letter
    return found[1]


async def role_named(name: str) -> Role:
    role = await Role.named(name)
    assert role is not None
    return role


async def user_named(username: str) -> User:
    user = await User.by_username(username)
    assert user is not None, f"there is no {username}"
    return user


async def roles_of(username: str) -> set[str]:
    """Return the names of the user's roles."""
    return await role_names(await user_named(username))


async def documents(collection: str, **match: Any) -> list[dict[str, Any]]:
    """Return the raw documents of a collection."""
    found = User.get_motor_collection().database[collection]
    return await found.find(match).sort("_id").to_list(None)


# Collections that background tasks write.
VOLATILE = {"workers", "barriers", "hourly_counts", "seals", "unsealed"}


# Fields that the use of a session changes.
USE = ("seen_at", "online_until", "page", "worker")


async def contents() -> dict[str, str]:
    """Return a digest of each collection, without the VOLATILE ones and the fields in USE."""
    database = User.get_motor_collection().database
    digests = {}
    for name in sorted(set(await database.list_collection_names()) - VOLATILE):
        rows = await documents(name)
        for row in rows:
            for use in USE:
                row.pop(use, None)
        digests[name] = hashlib.sha256(json_util.dumps(rows).encode()).hexdigest()
    return digests


async def pages(visitor: Visitor, path: str, *, at_most: int = 10) -> list[Answer]:
    """Return all pages of a list, by following its links to the next page."""
    found = [await visitor.get(path)]
    while more := [link for link in found[-1].links if "after=" in link]:
        assert len(found) < at_most
        found.append(await visitor.get(more[0]))
    assert all(page.status == 200 for page in found)
    return found


@pytest.fixture
def visitors(app: Quart) -> Visitors:
    return Visitors(app)


StartApp = Callable[..., Awaitable[Visitors]]


@pytest.fixture
async def start_app(settings: Settings) -> AsyncIterator[StartApp]:
    """Start applications on one database, with changed settings."""
    async with AsyncExitStack() as stack:

        async def start(**limits: Any) -> Visitors:
            changed = {
                name: parse(value) if name.startswith("limit_") else value
                for name, value in limits.items()
            }
            app = create_app(settings.model_copy(update=changed))
            await stack.enter_async_context(_running(app))
            return Visitors(app)

        yield start


@asynccontextmanager
async def _running(app: Quart) -> AsyncIterator[None]:
    async with app.test_app():
        yield


@pytest.fixture
def anonymous(visitors: Visitors) -> Visitor:
    return visitors.anonymous()


@pytest.fixture
async def ada(visitors: Visitors) -> Visitor:
    """A member, signed in."""
    return await visitors.member("ada")


@pytest.fixture
async def root(visitors: Visitors) -> Visitor:
    """An administrator, signed in, without another role."""
    return await visitors.admin("root")
