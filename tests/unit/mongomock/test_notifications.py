from __future__ import annotations

import pytest

from quartapp.activities import POST_REMOVED, ROLE_GRANTED, ROLE_REVOKED, catalogue
from quartapp.models.base.references import user_ref
from quartapp.models.notifications.notice import Notice
from quartapp.models.sessions.reason import Reason

DATA = {
    "by": "ada",
    "role": "editor",
    "title": "On engines",
    "day": "2030-12-31",
    "answer": "Not this week",
    "until": "2030-12-31 12:00 UTC",
    "email": "bob@example.org",
    "factor": "an abacus",
    "left": 3,
}


@pytest.mark.parametrize("kind", catalogue.notifications)
def test_every_kind_of_notification_is_a_sentence_with_its_names(kind: str) -> None:
    text = catalogue.notification_text(kind, DATA)
    assert text[0] == text[0].upper() or text.startswith("ada ")
    assert text.endswith(".")
    assert "{" not in text
    shown = [str(DATA[word]) for word in catalogue.notifications[kind].words()]
    assert all(word in text for word in shown)


@pytest.mark.parametrize("kind", catalogue.notifications)
@pytest.mark.parametrize("data", [{}, {"by": None}, {"by": "", "novelty": {"deep": 1}}])
def test_a_notification_of_an_older_version_is_still_a_sentence(
    kind: str, data: dict[str, object]
) -> None:
    text = catalogue.notification_text(kind, data)
    assert text.endswith(".")
    assert "None" not in text


def test_an_action_without_an_actor_is_attributed_to_an_operator() -> None:
    text = catalogue.notification_text(
        ROLE_REVOKED.notification_kind, {"by": None, "role": "editor"}
    )
    assert text == "An operator removed the role editor from you."


def test_an_unknown_kind_of_notification_has_a_generic_text() -> None:
    assert catalogue.notification_text("moon.landed", {"by": "ada"}) == "Something changed."


def test_a_title_is_quoted_and_not_used_as_a_format_string() -> None:
    text = catalogue.notification_text(
        POST_REMOVED.notification_kind, {"by": "{role}", "title": "{by.__class__}"}
    )
    assert text == "{role} removed your post “{by.__class__}”."


async def test_a_notification_uses_its_own_data(mocked: object) -> None:
    notice = Notice(
        user=user_ref(Notice.model_fields["id"].get_default(call_default_factory=True)),
        seq=1,
        kind=ROLE_GRANTED.notification_kind,
        data={"by": "ada", "role": "editor"},
    )
    assert notice.text == "ada gave you the role editor."


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("by", ["ada", None])
def test_every_reason_for_an_ended_session_is_a_sentence(reason: Reason, by: str | None) -> None:
    message = reason.message(by)
    assert message[0].isupper() or message.startswith("ada ")
    assert message.endswith(".")
    assert "{" not in message
    assert "None" not in message
