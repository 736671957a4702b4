"""The export of personal data (ASVS 14.2)."""

import io
import json
import zipfile
from datetime import timedelta
from typing import Any

from beanie import PydanticObjectId

from quartapp.models import Comment, Post, Token, User
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.accounts.one_time_token import Purpose, code_digest
from quartapp.models.accounts.preferences import Preferences
from quartapp.models.accounts.profile import change_preferences, change_profile
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.references import user_ref
from quartapp.models.privacy import data_export, personal_data
from quartapp.models.sessions.reason import Reason
from tests.integration.routes.authenticator import set_up
from tests.integration.routes.conftest import Visitor, Visitors, documents, role_named, user_named
from tests.integration.routes.requests import add_passkey
from tests.security_key import Authenticator


async def export(visitor: Visitor) -> tuple[dict[str, Any], str]:
    """Return the content of the archive, parsed and as text."""
    response = await visitor.client.post(
        "/account/export",
        form={"csrf_token": await visitor.csrf_token()},
        headers={"Origin": "http://localhost"},
        scope_base=visitor.scope,
    )
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/zip"
    disposition = f'attachment; filename="{visitor.username}.zip"'
    assert response.headers["Content-Disposition"] == disposition
    assert response.headers["Cache-Control"] == "no-store"
    body = await response.get_data(as_text=False)
    assert len(body) == int(response.headers["Content-Length"])
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        (name,) = archive.namelist()
        assert name == f"{visitor.username}.json"
        text = archive.read(name).decode()
    return json.loads(text), text


async def test_the_export_contains_all_personal_data_and_no_secret(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    user, bob = await user_named("ada"), await visitors.account("bob")
    by, phone = Actor(user.id, "ada", "192.0.2.7"), ada.another_device()
    await phone.sign_in()
    post = await Post.write("On engines", "“Ünïcode” & more", by=by)
    await Post.write("Bob's own", "text", by=Actor(bob.id, "bob"))
    await Comment.write(post, "A word of mine", by=by)
    boss = Actor((await user_named("root")).id, "root", "198.51.100.1")
    await user.grant(await role_named("moderator"), by=boss)
    code = code_digest("canary-key", PydanticObjectId(), "123456")
    token = await Token.issue(
        PydanticObjectId(), Purpose.RESET, user, user.email, lasts=timedelta(days=1), code=code
    )
    await bob.end_sessions(Reason.ENDED_BY_ADMIN, by=SYSTEM)
    app = await set_up(ada)
    await add_passkey(ada, Authenticator())
    await change_profile(user.id, display_name="Ada L.", about="I write programs.", by=by)
    await change_preferences(user.id, Preferences(timezone="Europe/London"), by=by)
    user = await user_named("ada")
    # A field that a later version adds is not exported until it is declared.
    await User.change({"_id": user.id}, {"$set": {"totp_backup": "canary-totp"}})
    found, text = await export(ada)

    assert set(found) == {"account", *(personal.name for personal in personal_data.PERSONAL)}
    assert found["account"]["username"] == "ada"
    assert found["account"]["display_name"] == "Ada L."
    assert found["account"]["about"] == "I write programs."
    assert found["account"]["preferences"]["timezone"] == "Europe/London"
    assert found["account"]["roles"] == ["member", "moderator"]
    assert len(found["sessions"]) == 2
    assert [each["title"] for each in found["posts"]] == ["On engines"]
    assert found["posts"][0]["body"] == "“Ünïcode” & more"
    assert found["comments"][0]["post"] == str(post.id)
    assert [each["purpose"] for each in found["tokens"]] == ["reset"]
    assert {"welcome", "role.granted"} <= {each["kind"] for each in found["notices"]}
    events = {each["verb"]: each for each in found["events"]}
    assert {"user.registered", "session.started", "role.granted", "data.exported"} <= set(events)
    assert events["role.granted"]["by"] == "somebody else"
    assert events["data.exported"]["by"] == "you"

    secrets = [user.password_hash, fingerprint(user.password_hash), token, code, "canary-totp"]
    assert user.totp
    secrets += [ada.token, phone.token, app.secret, user.totp.sealed]
    secrets += [*ada.codes, *user.recovery_codes]
    assert found["account"]["second_factors"] == ["authenticator app", "passkey"]
    (passkey,) = await documents("passkeys")
    secrets += [passkey["credential_id"], str(passkey["public_key"])]
    for name in ("digest", "credential", "browser", "code"):
        rows = [*await documents("sessions"), *await documents("tokens")]
        secrets += [row[name] for row in rows if row.get(name)]
    assert len(secrets) > 36
    assert [secret for secret in secrets if secret in text] == []
    # The export does not contain the IP address of an administrator.
    assert "198.51.100.1" not in text
    assert "Bob's own" not in text


async def test_a_failed_export_does_not_count_for_the_limit(ada: Visitor, monkeypatch: Any) -> None:
    async def fails(user: User) -> Any:
        yield "{"
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(data_export, "export", fails)
        assert (await ada.post("/account/export")).status == 500
    await export(ada)
    assert (await ada.post("/account/export")).status == 429


async def test_exports_are_limited_and_the_error_says_when_to_try_again(ada: Visitor) -> None:
    await export(ada)
    answer = await ada.post("/account/export")
    assert answer.status == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 300
    assert "Try again" in answer.text
    assert len(await documents("events", verb="data.exported")) == 1


async def test_a_large_export_is_read_page_by_page(
    visitors: Visitors, ada: Visitor, monkeypatch: Any
) -> None:
    monkeypatch.setattr(personal_data, "BATCH", 10)
    monkeypatch.setattr("quartapp.routes.privacy.export.CHUNK", 1000)
    monkeypatch.setattr("quartapp.routes.privacy.export.IN_MEMORY", 1000)
    author = (await user_named("ada")).id
    posts = [
        Post(author=user_ref(author), title=str(number), body="word " * 50) for number in range(95)
    ]
    await Post.insert_many(posts)
    found, _ = await export(ada)
    assert sorted(int(each["title"]) for each in found["posts"]) == list(range(95))
