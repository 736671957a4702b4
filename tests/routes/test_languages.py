"""The language of pages: chosen by `Accept-Language`, and stated by the page."""

from tests.routes.conftest import Visitor


async def test_accept_language_chooses_the_language(anonymous: Visitor) -> None:
    for accepted, locale in (("de-AT, en;q=0.5", "de"), ("en, de;q=0.5", "en"), ("fr", "en")):
        answer = await anonymous.get("/login", headers={"Accept-Language": accepted})
        assert f'<html lang="{locale}">' in answer.text
        assert "Accept-Language" in ", ".join(answer.headers.getlist("Vary"))
