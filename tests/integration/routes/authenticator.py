"""An authenticator app, and the pages that set it up."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from httpx import Response
from pyotp.totp import TOTP

from quartapp import clock
from tests.integration.routes.conftest import Answer, Visitor, Visitors


@dataclass
class App:
    """An app with a TOTP secret."""

    secret: str

    def code(self, *, later: float = 0) -> str:
        """Return the code that it shows now, or `later` seconds from now."""
        return app_code(self.secret, later=later)


def app_code(secret: str, *, later: float = 0) -> str:
    """Return the code for this secret, now or `later` seconds from now."""
    return TOTP(secret).at(int(clock.now().timestamp() + later))


def secret_on(page: Answer | Response) -> str:
    found = re.search(r'id="totp-secret"[^>]*>(.*?)</p>', page.text, re.DOTALL)
    assert found, page.text
    return re.sub(r"<[^>]*>", "", found[1])


def codes_on(page: Answer) -> list[str]:
    return [html.unescape(code) for code in re.findall(r"<li><code>([^<]*)</code>", page.text)]


async def set_up(visitor: Visitor) -> App:
    """Set up an app through the pages."""
    secret = secret_on(await visitor.get("/account/factors/totp"))
    done = await visitor.post("/account/factors/totp", code=app_code(secret))
    assert (done.status, done.location) == (303, "/account/factors/recovery-codes"), done.text
    visitor.codes = codes_on(await visitor.get(done.location))
    return App(secret)


async def before_second_step(visitors: Visitors, username: str) -> Visitor:
    """Return a visitor with an app who has entered the password and not yet the code."""
    visitor = await visitors.signed_in(username)
    await set_up(visitor)
    await visitor.post("/logout")
    answer = await visitor.sign_in()
    assert (answer.status, answer.location) == (303, "/login/factor")
    return visitor
