"""The language of pages, errors, emails and messages, and texts that have no translation."""

import re
from html.parser import HTMLParser

import pytest
from beanie import PydanticObjectId

from quartapp.i18n import LOCALES, PSEUDO
from quartapp.i18n.devices import UNKNOWN
from quartapp.models import Session, User
from quartapp.policy import Permission
from tests.integration.routes.conftest import Visitor, Visitors, user_named
from tests.integration.routes.test_every_page import every_page
from tests.people import until

GERMAN = {"Accept-Language": "de-AT, en;q=0.5"}
ENGLISH = {"Accept-Language": "en"}


async def prefer(user: User, language: str) -> None:
    await User.change({"_id": user.id}, {"$set": {"preferences.language": language}})


@pytest.mark.parametrize(
    ("accepted", "locale"),
    [("de-AT, en;q=0.5", "de"), ("en, de;q=0.5", "en"), ("de;q=0.4, en;q=0.6", "en"), ("fr", "en")],
)
async def test_accept_language_chooses_the_language(
    anonymous: Visitor, accepted: str, locale: str
) -> None:
    answer = await anonymous.get("/login", headers={"Accept-Language": accepted})
    assert f'<html lang="{locale}"' in answer.text
    assert {"de": "Anmelden", "en": "Sign in"}[locale] in answer.text
    assert "Accept-Language" in ", ".join(answer.headers.getlist("Vary"))


async def test_the_preference_of_a_user_wins_over_accept_language(visitors: Visitors) -> None:
    ada = await visitors.member()
    await prefer(await user_named("ada"), "de")
    assert '<html lang="de"' in (await ada.get("/account", headers=ENGLISH)).text
    await prefer(await user_named("ada"), "xx")

    async def is_english() -> bool:
        return '<html lang="en"' in (await ada.get("/account", headers=ENGLISH)).text

    # The worker hears of the change from the change stream.
    await until(is_english)


async def test_the_navigation_is_not_shared_between_languages(ada: Visitor) -> None:
    for headers, text in ((GERMAN, "Beiträge"), (ENGLISH, "Posts"), (GERMAN, "Beiträge")):
        assert f">{text}</a>" in (await ada.get("/", headers=headers)).text


@pytest.mark.parametrize("locale", LOCALES)
async def test_errors_are_in_the_language_of_the_request(ada: Visitor, locale: str) -> None:
    headers = {"Accept-Language": locale}
    missing = await ada.get("/nowhere", headers=headers)
    assert {"en": "Page not found", "de": "Seite nicht gefunden"}[locale] in missing.text
    refused = await ada.get("/admin/users", headers=headers)
    assert {"en": "You do not have permission", "de": "keine Berechtigung"}[locale] in refused.text
    other_host = await ada.get("/", headers={**headers, "Host": "elsewhere.example"})
    assert {"en": "is not served here", "de": "wird hier nicht bedient"}[locale] in other_host.text


async def test_errors_of_forms_are_in_the_language_of_the_request(anonymous: Visitor) -> None:
    token = await anonymous.csrf_token()
    sent = {"csrf_token": token, "username": "?", "email": "a", "password": "x", "confirm": "y"}
    answer = await anonymous.send(
        "/register", sent, {"Origin": "http://localhost", "Accept-Language": "de"}
    )
    assert answer.status == 422
    assert answer.error("username").startswith("Verwenden Sie 1 bis 32 Buchstaben")
    assert answer.error("email").startswith("Das ist keine E-Mail-Adresse.")
    assert answer.error("password") == "Verwenden Sie mindestens 8 Zeichen."
    assert answer.error("confirm") == "Die Passwörter stimmen nicht überein."


async def test_emails_are_in_the_language_of_the_receiver(visitors: Visitors) -> None:
    await visitors.account("ada")
    await prefer(await user_named("ada"), "de")
    anonymous = visitors.anonymous()
    await anonymous.post("/forgot", email="ada@example.org")
    text = (await visitors.emails("ada@example.org", "Neues Passwort festlegen"))[0]
    assert "Legen Sie auf dieser Seite ein neues Passwort fest:" in text


async def test_emails_to_others_are_in_the_language_of_the_request(visitors: Visitors) -> None:
    anonymous = visitors.anonymous()
    token = await anonymous.csrf_token()
    fields = {
        "csrf_token": token,
        "username": "ada",
        "email": "ada@example.org",
        "password": anonymous.password,
        "confirm": anonymous.password,
    }
    await anonymous.send("/register", fields, {"Origin": "http://localhost", **GERMAN})
    assert await visitors.emails("ada@example.org", "Bestätigen Sie Ihre E-Mail-Adresse")


async def test_notifications_are_in_the_language_of_the_reader(visitors: Visitors) -> None:
    ada, root = await visitors.member(), await visitors.admin()
    await root.post("/admin/users/ada/grants", role="moderator")
    german = (await ada.get("/account/notices", headers=GERMAN)).text
    assert "root hat Ihnen die Rolle moderator erteilt." in german
    english = (await ada.get("/account/notices", headers=ENGLISH)).text
    assert "root gave you the role moderator." in english


@pytest.mark.parametrize("by", ["owner", "administrator"])
async def test_a_message_names_the_device_in_the_language_of_the_reader(
    visitors: Visitors, by: str
) -> None:
    ada, root = await visitors.member("ada"), await visitors.admin()
    user = await user_named("ada")
    phone = visitors.anonymous()
    await phone.sign_in_without_form(user)
    ended = PydanticObjectId(await phone.session_id())
    await Session.change({"_id": ended}, {"$set": {"device": UNKNOWN}})
    actor, place = (ada, "account") if by == "owner" else (root, "admin")
    await prefer(await user_named("ada" if by == "owner" else "root"), "de")
    for _ in range(2):
        answer = await actor.post(f"/{place}/sessions/{ended}/end")
        page = await actor.get(answer.location)
        assert "Unbekanntes Gerät" in page.text
        assert UNKNOWN not in page.text


async def test_the_end_of_a_session_is_explained_in_german(visitors: Visitors) -> None:
    ada, root = await visitors.member(), await visitors.admin()
    async with ada.client.websocket("/ws", headers={"Origin": "http://localhost", **GERMAN}) as tab:
        assert (await tab.receive_json())["type"] == "hello"
        await root.post("/admin/users/ada/sessions/end")
        message = await tab.receive_json()
        while message["type"] != "session.ended":
            message = await tab.receive_json()
    assert message["message"] == "root hat Ihre Sitzung beendet."
    assert (await ada.get("/api/me", headers=GERMAN)).text.count("root hat Ihre Sitzung beendet.")


class Words(HTMLParser):
    """Collects the words of a page that are neither marked as code nor times nor in a form field
    that keeps what a user has typed."""

    SKIPPED = {"code", "pre", "time", "textarea", "script", "style", "option"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._open: list[tuple[str, bool]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        for name in ("aria-label", "placeholder", "title", "alt", "data-label"):
            self._add(attributes.get(name) or "")
        if tag not in ("meta", "link", "input", "br", "img", "wbr", "hr", "use", "path"):
            classes = (attributes.get("class") or "").split()
            self._open.append((tag, tag in self.SKIPPED or "mono" in classes))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(skipped for _, skipped in self._open):
            self._add(data)

    def _add(self, text: str) -> None:
        # Every letter of a translated text has an accent.
        self.found |= set(re.findall(r"[A-Za-z]{3,}", re.sub(r"\S+[@/.]\S+", "", text)))


# Names of users, roles, permissions and of the site, and what tests have written.
DATA = {
    *("quartapp", "UTC", "boss", "eve", "author", "spare", "role", "member", "moderator", "admin"),
    *("Some", "text", "title", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sept"),
    *("Oct", "Nov", "Dec", "reason", "wanted", "comment"),
    *(part for permission in Permission for part in permission.split(".")),
}


async def test_pages_in_the_pseudo_locale_have_no_untranslated_word(visitors: Visitors) -> None:
    pages = await every_page(visitors, headers={"Accept-Language": PSEUDO})
    found = {
        f"{where}: {' '.join(sorted(words))}"
        for where, page in pages.items()
        if not where.startswith("/dev/")
        and f'<html lang="{PSEUDO}"' in page.text
        and (words := Words(page.text).found - DATA)
    }
    assert "\n".join(sorted(found)) == ""
    assert len(pages) > 60
