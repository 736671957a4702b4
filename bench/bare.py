"""The bare application that `bench.page` compares with: Quart, Quart-Auth, the same templates."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, render_template, request
from quart_auth import AuthUser, QuartAuth, login_required

from quartapp.forms.accounts import PasswordForm
from quartapp.routes import templating
from quartapp.settings import Settings


class Somebody(AuthUser):
    """Always the same user, since the stateless cookie contains only an id."""

    signed_in = True
    session_id = user_id = "6b0343fbc2f3f9f070086036"
    username = "ada"
    roles = ("member",)
    permissions = frozenset({"posts.write"})
    version = 1
    cursor, unread = "1", 1

    def may(self, permission: str) -> bool:
        return permission in self.permissions


def create() -> tuple[Quart, str]:
    """Return the application and the cookie header of a signed-in user."""
    app = Quart("quartapp")
    app.secret_key = "bare" * 10
    extension = QuartAuth(app, cookie_secure=False, user_class=Somebody)
    templating.init_app(app, Settings.load())
    app.jinja_env.globals["csrf_field"] = lambda: ""

    @app.get("/account/password")
    @login_required
    async def page() -> str:
        form = PasswordForm()
        return await render_template("accounts/password.html", form=form)

    @app.get("/api/me")
    @login_required
    async def me() -> dict[str, Any]:
        return {"username": "ada", "path": request.path, "permissions": ["posts.write"]}

    return app, f"{extension.cookie_name}={extension.dump_token('ada', app)}"


async def main() -> None:
    app, cookie = create()
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.loglevel = "WARNING"
    config.keep_alive_max_requests = 1_000_000
    config.include_server_header = False
    print(f"http://127.0.0.1:{listener.getsockname()[1]} {cookie}", flush=True)
    await serve(app, config)


if __name__ == "__main__":
    asyncio.run(main())
