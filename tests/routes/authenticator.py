"""An authenticator app, as those who sign in have one in their pocket."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from httpx import Response
from pyotp.totp import TOTP

from quartapp import clock
from tests.routes.conftest import Answer, Town, Visitor


@dataclass
class App:
    """What shares a secret with us."""

    secret: str

    def code(self, *, later: float = 0) -> str:
        """What it shows now, or so many seconds later."""
        return app_code(self.secret, later=later)


def app_code(secret: str, *, later: float = 0) -> str:
    """What an app shows that has this secret, now or so many seconds later."""
    return TOTP(secret).at(int(clock.now().timestamp() + later))


def secret_on(page: Answer | Response) -> str:
    found = re.search(r'id="totp-secret"[^>]*>(.*?)</p>', page.text, re.DOTALL)
    assert found, page.text
    return re.sub(r"<[^>]*>", "", found[1])


def codes_on(page: Answer) -> list[str]:
    return [html.unescape(code) for code in re.findall(r"<li><code>([^<]*)</code>", page.text)]


async def set_up(visitor: Visitor) -> App:
    """Sets up an app, by the pages."""
    secret = secret_on(await visitor.get("/account/factors/totp"))
    done = await visitor.post("/account/factors/totp", code=app_code(secret))
    assert (done.status, done.location) == (303, "/account/factors/recovery-codes"), done.text
    visitor.codes = codes_on(await visitor.get(done.location))
    return App(secret)


async def half_way(town: Town, username: str) -> Visitor:
    """Somebody who has signed out, and has shown their password again, but not their app."""
    visitor = await town.signed_in(username)
    await set_up(visitor)
    await visitor.post("/logout")
    answer = await visitor.sign_in()
    assert (answer.status, answer.location) == (303, "/login/factor")
    return visitor
