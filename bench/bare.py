"""The bare application that `bench.page` compares with: Quart, Quart-Auth, the same templates.

`python -m bench.bare DATA COOKIE PATH ...` reads from the running server's database. It first asks
the real application, in this process, for each page, and notes the template, its context and the
number of queries. Then it serves the same paths: it sends as many queries for one document, and
renders the template with that context. It prints its URL and the cookie of its user.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config
from pydantic import SecretStr
from pymongo import monitoring
from quart import Quart, render_template, template_rendered
from quart_auth import AuthUser, QuartAuth, login_required

from quartapp import create_app
from quartapp.db.embedded import DataFolder
from quartapp.i18n import templates as translated
from quartapp.models import User
from quartapp.settings import Settings

# What Quart and the application add to the context of every template.
ADDED = {"g", "request", "session", "current_user", "path", "query"}
READS = {"find", "aggregate", "count", "distinct"}
LEASE = {"workers", "barriers"}


@dataclass(frozen=True)
class Recording:
    """What the application did to answer a page; `template` is empty for JSON."""

    path: str
    template: str
    context: dict[str, Any]
    queries: int


class Reads(monitoring.CommandListener):
    """Counts the reads of this process."""

    count = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if (
            event.command_name in READS
            and event.command.get(event.command_name) not in LEASE
            and "$changeStream" not in str(event.command.get("pipeline", ""))[:60]
        ):
            self.count += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


READ = Reads()


async def record(app: Quart, cookie: str, paths: list[str]) -> tuple[list[Recording], Any]:
    """Return a recording of each page, and the principal of the session with this cookie."""
    rendered: list[tuple[str, dict[str, Any]]] = []
    users: list[Any] = []

    def note(_: Any, *, template: Any, context: dict[str, Any], **__: Any) -> None:
        rendered.append((template.name, context))
        users.append(context["current_user"].principal)

    recordings = []
    with template_rendered.connected_to(note, app):
        for path in paths:
            # The first request of a session is answered from the database.
            for _ in range(3):
                rendered.clear()
                READ.count = 0
                answer = await app.test_client(use_cookies=False).get(
                    path, headers={"Cookie": cookie, "Host": "localhost"}
                )
                assert answer.status_code == 200, (path, answer.status_code)
            template, context = rendered[-1] if rendered else ("", {})
            own = {name: value for name, value in context.items() if name not in ADDED}
            recordings.append(Recording(path, template, own, READ.count))
    return recordings, users[-1]


def create(recorded: Quart, pages: list[Recording], principal: Any) -> tuple[Quart, str]:
    """Return the bare application and the cookie header of its signed-in user."""

    class RecordedUser(AuthUser):
        """Always the same user, since the stateless cookie contains only an id."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.signed_in = True
            for name in principal.__slots__:
                setattr(self, name, getattr(principal, name))
            self.open_requests = 0

        def may(self, permission: str) -> bool:
            return permission in principal.permissions

        def waits_for(self, permission: str) -> bool:
            return False

    app = Quart("quartapp")
    app.secret_key = "bare" * 10
    app.extensions["quartapp"] = recorded.extensions["quartapp"]
    extension = QuartAuth(app, cookie_secure=False, user_class=RecordedUser)
    for ours, theirs in (
        (app.jinja_env.globals, recorded.jinja_env.globals),
        (app.jinja_env.filters, recorded.jinja_env.filters),
        (app.jinja_env.tests, recorded.jinja_env.tests),
    ):
        ours.update({name: value for name, value in theirs.items() if name not in ours})
    translated.install(app.jinja_env)
    app.jinja_env.globals["csrf_field"] = lambda: ""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True

    def view(page: Recording) -> Callable[[], Awaitable[Any]]:
        context = {**page.context, "path": page.path, "query": ""}

        @login_required
        async def answer() -> Any:
            users = User.get_motor_collection()
            for _ in range(page.queries):
                await users.find({"_id": principal.user_id}).to_list(None)
            if not page.template:
                return {"username": "ada", "path": page.path, "permissions": ["posts.write"]}
            return await render_template(page.template, **context)

        return answer

    for number, page in enumerate(pages):
        app.add_url_rule(page.path, f"page-{number}", view(page))
    return app, f"{extension.cookie_name}={extension.dump_token('ada', app)}"


async def main(data: str, cookie: str, paths: list[str]) -> None:
    monitoring.register(READ)
    settings = Settings.load(
        data=Path(data), mongodb_uri=SecretStr(DataFolder(Path(data)).uri), allow_old_mongodb=True
    )
    recorded = create_app(settings)
    async with recorded.test_app():
        recordings, principal = await record(recorded, cookie, paths)
        app, bare_cookie = create(recorded, recordings, principal)
        listener = socket.create_server(("127.0.0.1", 0))
        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        config.loglevel = "WARNING"
        config.keep_alive_max_requests = 1_000_000
        config.include_server_header = False
        queries = ",".join(str(page.queries) for page in recordings)
        port = listener.getsockname()[1]
        print(f"http://127.0.0.1:{port} {bare_cookie} {queries}", flush=True)
        await serve(app, config)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
