"""What holds for each page that there is (ASVS 6.2.6, 6.2.7, 6.4.2, 7.4.4)."""

from html.parser import HTMLParser

from quartapp.models.accounts.one_time_token import Purpose
from quartapp.policy import Permission
from tests.routes.conftest import Answer, Town
from tests.routes.matrix import MATRIX
from tests.routes.scenes import a_link, path, scene

Attributes = dict[str, str | None]


class Inputs(HTMLParser):
    """The inputs of a page, and what its elements would do by themselves."""

    def __init__(self, page: Answer) -> None:
        super().__init__()
        self.found: list[Attributes] = []
        self.handlers: list[str] = []
        self.feed(page.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "input":
            self.found.append(dict(attrs))


async def every_page(town: Town) -> dict[str, Answer]:
    """Each page as an author sees it who may do everything, and those for nobody."""
    _, parts = await scene(town)
    author = await town.holder("boss", *Permission)
    await a_link(author, Purpose.CONFIRM)
    own, found = await scene(town, "author"), {}
    for row in MATRIX:
        if row.method != "GET" or row.rule.startswith(("/static", "/api", "/livez", "/readyz")):
            continue
        for who, visitor in (("nobody", town.nobody()), ("boss", author), ("author", own[0])):
            answer = await visitor.get(path(row, {**parts, **(own[1] if who == "author" else {})}))
            if answer.status == 200 and answer.headers["Content-Type"].startswith("text/html"):
                found[f"{row.rule} of {who}"] = answer
    return found


async def test_passwords_are_masked_and_a_password_manager_may_fill_them(town: Town) -> None:
    asked_on = set()
    for where, page in (await every_page(town)).items():
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


async def test_every_page_of_somebody_signed_in_has_a_way_out(town: Town) -> None:
    for where, page in (await every_page(town)).items():
        signed_in = not where.endswith("nobody")
        assert ('<form action="/logout" method="post">' in page.text) is signed_in, where
