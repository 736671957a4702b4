"""Rules that hold for every page (ASVS 6.2.6, 6.2.7, 6.4.2, 7.4.4)."""

from html.parser import HTMLParser
from typing import Any

from quartapp.models.accounts.one_time_token import Purpose
from quartapp.policy import Permission
from tests.integration.routes.conftest import Answer, Visitors
from tests.integration.routes.permission_matrix import MATRIX
from tests.integration.routes.requests import author_with_content, issue_token, path

Attributes = dict[str, str | None]


class Inputs(HTMLParser):
    """Collects the inputs of a page and its inline event handlers."""

    def __init__(self, page: Answer) -> None:
        super().__init__()
        self.found: list[Attributes] = []
        self.handlers: list[str] = []
        self.feed(page.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "input":
            self.found.append(dict(attrs))


async def every_page(visitors: Visitors, **options: Any) -> dict[str, Answer]:
    """Return each page, as an administrator and as an anonymous visitor see it. `options` are those
    of the requests."""
    _, parts = await author_with_content(visitors)
    author = await visitors.with_permissions("boss", *Permission)
    await issue_token(author, Purpose.CONFIRM)
    own, found = await author_with_content(visitors, "author"), {}
    for row in MATRIX:
        if row.method != "GET" or row.rule.startswith(("/static", "/api", "/livez", "/readyz")):
            continue
        for who, visitor in (
            ("nobody", visitors.anonymous()),
            ("boss", author),
            ("author", own[0]),
        ):
            page = path(row, {**parts, **(own[1] if who == "author" else {})})
            answer = await visitor.get(page, **options)
            assert answer.status < 500, row
            if answer.status == 200 and answer.headers["Content-Type"].startswith("text/html"):
                found[f"{row.rule} of {who}"] = answer
    return found


async def test_password_fields_are_masked_and_have_autocomplete(visitors: Visitors) -> None:
    asked_on = set()
    for where, page in (await every_page(visitors)).items():
        inputs = Inputs(page)
        assert inputs.handlers == [], where
        for field in inputs.found:
            name = field.get("name") or ""
            assert not [word for word in ("hint", "question", "answer") if word in name], where
            if "password" not in name and name != "confirm":
                assert field.get("type") != "password", where
                continue
            asked_on.add(where.partition(" ")[0])
            assert field["type"] == "password", where
            assert field["autocomplete"] in ("current-password", "new-password"), where
            assert not {"readonly", "disabled", "maxlength"} & field.keys(), where
            assert field["value"] == "", where
    assert asked_on >= {
        "/register",
        "/login",
        "/confirm",
        "/setup/<token>",
        "/reset/<token>",
        "/account/password",
    }


async def test_every_page_of_a_signed_in_user_has_a_sign_out_button(visitors: Visitors) -> None:
    for where, page in (await every_page(visitors)).items():
        signed_in = not where.endswith("nobody")
        if "</html>" not in page.text:
            # A part of a page, which a script inserts.
            continue
        assert ('<form action="/logout" method="post">' in page.text) is signed_in, where
