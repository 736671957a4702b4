"""The pages and commands that `bench.growth` measures, on a database of `bench.population`."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any
from urllib.parse import quote

from pymongo.database import Database

from bench.rows import BUSY, BUSY_EACH, CREW, email, user_id, username
from quartapp import create_app
from quartapp.cli import roles as role_commands
from quartapp.cli import users as user_commands
from quartapp.models.sessions import expiry
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.integration.routes.conftest import Visitor, Visitors

# The commands change this user, whose account is active and owns few documents.
TARGET = username(15)

Measured = Callable[[], Awaitable[None]]
_turns = count()


@dataclass(frozen=True)
class Cursors:
    """Places in the middle and at the end of the lists, as the pages take them in `after`."""

    user: str
    account: str
    seen: str
    event: str
    post: str
    busy_post: str
    invitation: str
    request: str
    session: str
    last_session: str
    notice: str

    @classmethod
    def of(cls, database: Database[Any], size: int) -> Cursors:
        def middle(name: str) -> str:
            found = database[name].find({}, {"_id": 1}).sort("_id", 1)
            return str(found.skip(database[name].estimated_document_count() // 2).next()["_id"])

        active = database["sessions"].find(expiry.active_filter(datetime.now(UTC)))
        sessions = sorted((row["seen_at"], row["_id"]) for row in active)

        def place(number: int) -> str:
            seen, key = sessions[number]
            return quote(f"{seen.replace(tzinfo=UTC).isoformat()}_{key}")

        used = database["users"].find({"seen_at": {"$ne": None}}).sort("seen_at", -1)
        used_at = used.skip(size // 2).next()
        first = database["posts"].find_one({"author.$id": user_id(BUSY)}, sort=[("_id", 1)])
        assert first is not None
        return cls(
            user=username(size // 2),
            account=str(user_id(size // 2)),
            seen=quote(f"{used_at['seen_at'].replace(tzinfo=UTC).isoformat()}_{used_at['_id']}"),
            event=middle("events"),
            post=middle("posts"),
            busy_post=str(first["_id"]),
            invitation=middle("invitations"),
            request=middle("role_requests"),
            session=place(len(sessions) // 2),
            last_session=place(0),
            notice=str(size // BUSY_EACH // 2),
        )


@dataclass
class Site:
    """A running application on a database of one size.

    `root` is an administrator and `busy` the user with a tenth of all events and notifications.
    """

    size: int
    visitors: Visitors
    root: Visitor
    busy: Visitor
    at: Cursors
    random: Random

    def rows(self) -> dict[str, Measured]:
        """Return what is measured, by the name of its row."""
        rows = {path: self._get(self.busy, path) for path in OWN_PAGES}
        for name, path in {
            "/account/timeline, deep": f"/account/timeline?after={self.at.event}",
            "/account/notices, deep": f"/account/notices?after={self.at.notice}",
        }.items():
            rows[name] = self._get(self.busy, path)
        for name, path in {
            "/admin, the dashboard": "/admin",
            "/admin/users": "/admin/users",
            "/admin/users, deep": f"/admin/users?after={self.at.user}",
            "/admin/users, all match": "/admin/users?q=user",
            "/admin/users, all match, deep": f"/admin/users?q=user&after={self.at.user}",
            "/admin/users, none matches": "/admin/users?q=zzz",
            **{f"/admin/users?{query}": f"/admin/users?{query}" for query in LISTS_OF_USERS},
            "/admin/users, by creation, deep": f"/admin/users?sort=created&after={self.at.account}",
            "/admin/users, by last use, deep": f"/admin/users?sort=seen&after={self.at.seen}",
            "/admin/users/NAME, busy": f"/admin/users/{username(BUSY)}",
            "/admin/roles": "/admin/roles",
            "/admin/roles/NAME": f"/admin/roles/{CREW}",
            "/admin/sessions": "/admin/sessions",
            "/admin/sessions, deep": f"/admin/sessions?after={self.at.session}",
            "/admin/sessions, last page": f"/admin/sessions?after={self.at.last_session}",
            "/admin/sessions?person=": f"/admin/sessions?person={username(BUSY)}",
            "/admin/sessions?ip=": "/admin/sessions?ip=192.0.2.1",
            "/admin/sessions?online=": "/admin/sessions?online=1",
            "/admin/events": "/admin/events",
            "/admin/events, deep": f"/admin/events?after={self.at.event}",
            "/admin/events, newer": f"/admin/events?before={self.at.event}",
            "/admin/events, person": f"/admin/events?person={username(BUSY)}",
            "/admin/events, kind": "/admin/events?kind=role.granted",
            "/admin/events, address": "/admin/events?ip=192.0.2.1",
            "/admin/events, all filters": (
                f"/admin/events?person={username(BUSY)}&kind=role.granted&ip=192.0.2.1&q=member"
            ),
            "/admin/events, no match": "/admin/events?kind=role.granted&ip=192.0.2.1&q=nothing",
            "/admin/invitations": "/admin/invitations",
            "/admin/invitations, deep": f"/admin/invitations?after={self.at.invitation}",
            "/admin/requests": "/admin/requests",
            "/admin/requests, deep": f"/admin/requests?after={self.at.request}",
            "/admin/requests, decided": f"/admin/requests?view=decided&after={self.at.request}",
            "/posts": "/posts",
            "/posts, deep": f"/posts?after={self.at.post}",
            "/posts?q=, a word of all": "/posts?q=posts",
            "/posts?q=, deep": f"/posts?q=posts&after={self.at.post}",
            "/posts?q=, two words": "/posts?q=text+tenth",
            "/posts?q=, two words, deep": f"/posts?q=text+tenth&after={self.at.post}",
            "/posts?q=, one post": "/posts?q=post+500",
            "/posts?q=, none": "/posts?q=text+zzz",
            "/posts/ID, many comments": f"/posts/{self.at.busy_post}",
            "/users/NAME, busy": f"/users/{username(BUSY)}",
            "/users/NAME, busy, deep": f"/users/{username(BUSY)}?after={self.at.post}",
        }.items():
            rows[name] = self._get(self.root, path)
        return rows | {
            "/admin/users, a username": self._search(self._someone),
            "/admin/users, an address": self._search(self._address),
            "/admin/users, half an address": self._search(lambda: self._address()[:7]),
            "/admin/users, many addresses": self._search(lambda: self._address()[:1]),
            "/admin/users/NAME": lambda: self._show("/admin/users/"),
            "/users/NAME": lambda: self._show("/users/"),
            "sign in": lambda: self._sign_in("entrant", 303),
            "sign in, many ended sessions": lambda: self._sign_in(username(BUSY), 303),
            "sign in with an unknown username": lambda: self._sign_in(f"nobody{next(_turns)}", 422),
            "register": self._register,
            "POST grant": lambda: self._post(f"{TARGET}/grants", role="moderator"),
            "POST revoke": lambda: self._post(f"{TARGET}/grants/moderator/revoke"),
            "POST disable": lambda: self._post(f"{TARGET}/disable"),
            "POST enable": lambda: self._post(f"{TARGET}/enable"),
            "user list --limit 50": lambda: self._list(limit=50),
            "user list --search": lambda: self._list(search=self._address()),
            "user show": lambda: run(user_commands.show, username=self._someone()),
            "user grant": self._grant,
            "user revoke": lambda: run(user_commands.revoke, username=TARGET, role="moderator"),
            "user disable": lambda: run(user_commands.disable, username=TARGET, day=None),
            "user enable": lambda: run(user_commands.enable, username=TARGET),
            "role list": lambda: run(role_commands.list_roles),
        }

    def _someone(self) -> str:
        """Return the username of a random active user."""
        return username(10 * self.random.randrange(1, self.size // 10) + 5)

    def _address(self) -> str:
        return email(self.random.randrange(self.size))

    def _get(self, visitor: Visitor, path: str) -> Measured:
        async def ask() -> None:
            answer = await visitor.get(path)
            assert answer.status == 200, (path, answer.status, answer.text)

        return ask

    def _search(self, text: Callable[[], str]) -> Measured:
        async def ask() -> None:
            sought = text()
            answer = await self.root.get(f"/admin/users?q={quote(sought)}")
            assert answer.text.count(sought) > 1, answer.text

        return ask

    async def _show(self, path: str) -> None:
        answer = await self.root.get(path + self._someone())
        assert answer.status == 200, answer.text

    async def _sign_in(self, name: str, status: int) -> None:
        answer = await Visitor(self.visitors.app, name).sign_in()
        assert answer.status == status, answer.text

    async def _list(self, search: str = "", limit: int | None = None) -> None:
        await run(user_commands.list_users, search=search, after=None, limit=limit)

    async def _grant(self) -> None:
        await run(user_commands.grant, username=TARGET, role="moderator", lasts=None, end=None)

    async def _register(self) -> None:
        answer = await self.visitors.anonymous().register(f"new{time.time_ns()}")
        assert answer.status == 303, answer.text

    async def _post(self, path: str, **fields: str) -> None:
        answer = await self.root.post(f"/admin/users/{path}", **fields)
        assert answer.status == 303, answer.text


# Filters and orders of the list of users.
LISTS_OF_USERS = (
    *("sort=created", "sort=seen", "sort=seen&before=_ffffffffffffffffffffffff"),
    *(f"role={CREW}&sort=created", f"role={CREW}&sort=seen", "status=active&sort=seen"),
    *("status=disabled&sort=seen", "status=closing", f"status=unverified&role={CREW}&sort=created"),
    *("factor=none&sort=seen", "q=user&sort=seen", "q=user&status=disabled", "role=moderator"),
    *("status=closing&role=admin", "status=unverified&factor=none&sort=created"),
)
OWN_PAGES = (
    *("/api/me", "/", "/account", "/account/sessions", "/account/factors", "/account/timeline"),
    *("/account/notices", "/account/roles", "/account/export", "/account/delete"),
)


async def run(command: Any, **words: Any) -> None:
    """Run the body of a command of the command line, on the connection of the application."""
    with redirect_stdout(io.StringIO()):
        await command.callback.__wrapped__(**words)


@asynccontextmanager
async def site(settings: Settings, size: int, at: Cursors) -> AsyncIterator[Site]:
    """Start the application on the database, and sign the two users in."""
    app = create_app(settings)
    async with app.test_app():
        visitors = Visitors(app)
        root, busy = Visitor(app, "root"), Visitor(app, username(BUSY))
        for visitor in (root, busy):
            answer = await visitor.sign_in()
            assert answer.status == 303, answer.text
        yield Site(size, visitors, root, busy, at, Random(size))
        assert runtime_of(app).change_stream.live
