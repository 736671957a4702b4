from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from quartapp.settings import Settings, StartError

KEY = "k" * 32


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting in the environment and no `.env` in the folder."""
    for name, field in Settings.model_fields.items():
        monkeypatch.delenv(str(field.validation_alias or name).upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_development_needs_no_setting_at_all(tmp_path: Path) -> None:
    settings = Settings.load()
    assert not settings.production
    assert settings.mongodb_uri is None
    assert settings.data.resolve() == tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QUARTAPP_ENV", "staging"),
        ("MONGODB_DB", "no/slash"),
        ("MONGODB_DB", ""),
        ("MONGODB_DB", "x" * 39),
        ("BCRYPT_COST", "3"),
        ("BCRYPT_COST", "17"),
        ("BCRYPT_COST", "twelve"),
        ("BCRYPT_THREADS", "0"),
        ("BCRYPT_QUEUE", "0"),
        ("SESSION_IDLE_SECONDS", "59"),
        ("SESSION_LIFETIME_SECONDS", "-1"),
        ("REMEMBERED_IDLE_SECONDS", "1e"),
        ("REMEMBERED_LIFETIME_SECONDS", "0"),
        ("SESSIONS_PER_USER", "0"),
        ("LIVE_PING_SECONDS", "0"),
        ("LIVE_SWEEP_SECONDS", "-1"),
        ("LIVE_MAILBOX", "0"),
        ("SOCKETS_PER_SESSION", "0"),
        ("SOCKETS_PER_WORKER", "none"),
        ("BASE_URL", "people.example.org"),
        ("BASE_URL", "ftp://people.example.org"),
        ("BASE_URL", "https://people.example.org/path"),
        ("BASE_URL", "https://ada@people.example.org"),
        ("BASE_URL", "https://people.example.org:0"),
        ("BASE_URL", "https://people.example.org\n"),
        ("BASE_URL", "https://peo ple.example.org"),
        ("BASE_URL", ""),
        ("SMTP_PORT", "0"),
        ("SMTP_TLS", "maybe"),
        ("MAIL_FROM", "no address"),
        ("MAIL_FROM", "a@b\r\nBcc:c@d"),
    ],
)
def test_a_bad_value_names_itself(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError) as stopped:
        Settings.load()
    assert str(stopped.value).startswith(f"{name}: ")
    assert "\n" not in str(stopped.value)


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCRYPT_COST", "x")
    monkeypatch.setenv("LIVE_MAILBOX", "y")
    with pytest.raises(StartError, match=r"BCRYPT_COST: .*; LIVE_MAILBOX: "):
        Settings.load()


@pytest.mark.parametrize("name", ["SECRET_KEY_FALLBACKS", "ALLOWED_ORIGINS"])
def test_a_list_that_is_none_names_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "not json")
    with pytest.raises(StartError, match=name):
        Settings.load()


@pytest.mark.parametrize(
    ("key", "says"),
    [(None, "none is set"), ("", "none is set"), ("k" * 31, "31"), ("ü" * 15, "30")],
)
def test_production_refuses_a_short_key(
    key: str | None, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUARTAPP_ENV", "production")
    if key is not None:
        monkeypatch.setenv("SECRET_KEY", key)
    with pytest.raises(StartError, match=rf"\ASECRET_KEY: .* 32 bytes.* {says}") as stopped:
        Settings.load()
    assert not key or key not in str(stopped.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("key", [KEY, "ü" * 16])
def test_production_takes_a_key_of_32_bytes(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARTAPP_ENV", "production")
    monkeypatch.setenv("SECRET_KEY", key)
    settings = Settings.load()
    assert settings.production
    assert settings.secret_key.get_secret_value() == key


def test_production_refuses_cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARTAPP_ENV", "production")
    monkeypatch.setenv("SECRET_KEY", KEY)
    monkeypatch.setenv("BCRYPT_COST", "9")
    with pytest.raises(StartError, match="BCRYPT_COST"):
        Settings.load()


def test_the_development_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key = Settings.load().secret_key.get_secret_value()
    finally:
        os.umask(before)
    file = tmp_path / "data" / "secret_key"
    assert len(key) >= 32
    assert file.read_text() == key
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert Settings.load().secret_key.get_secret_value() == key


def test_many_who_start_at_once_make_one_key(tmp_path: Path) -> None:
    def load(_: int) -> str:
        return Settings.load().secret_key.get_secret_value()

    for number in range(5):
        place = tmp_path / str(number)
        os.environ["QUARTAPP_DATA"] = str(place)
        try:
            with ThreadPoolExecutor(16) as pool:
                keys = set(pool.map(load, range(16)))
        finally:
            del os.environ["QUARTAPP_DATA"]
        assert len(keys) == 1
        assert [file.name for file in place.iterdir()] == ["secret_key"]


def test_a_key_that_is_set_is_used_and_none_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_KEY", "short")
    assert Settings.load().secret_key.get_secret_value() == "short"
    assert not (tmp_path / "data").exists()


def test_a_place_that_cannot_keep_the_key_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder belongs")
    with pytest.raises(StartError, match="secret key") as stopped:
        Settings.load()
    assert "\n" not in str(stopped.value)


def test_the_file_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("BCRYPT_COST=11\nBCRYPT_QUEUE=5\nUNKNOWN=1\n")
    monkeypatch.setenv("BCRYPT_QUEUE", "6")
    settings = Settings.load()
    assert (settings.bcrypt_cost, settings.bcrypt_queue) == (11, 6)


def test_a_variable_called_data_is_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", "/nowhere")
    assert Settings.load(data=tmp_path / "ours").data == tmp_path / "ours"
    assert Settings.load().data == Path("data")


def test_a_remembered_session_lasts_longer() -> None:
    settings = Settings.load()
    assert settings.session_idle(remembered=False) == timedelta(minutes=30)
    assert settings.session_idle(remembered=True) == timedelta(days=14)
    assert settings.session_lifetime(remembered=False) == timedelta(hours=8)
    assert settings.session_lifetime(remembered=True) == timedelta(days=30)


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARTAPP_ENV", "production")
    monkeypatch.setenv("SECRET_KEY", KEY)


@pytest.mark.usefixtures("production")
def test_production_sends_no_letter_before_it_knows_its_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not Settings.load().sends_mail
    monkeypatch.setenv("SMTP_HOST", "post.example.org")
    with pytest.raises(StartError, match="BASE_URL"):
        Settings.load()
    monkeypatch.setenv("BASE_URL", "http://people.example.org")
    with pytest.raises(StartError, match=r"BASE_URL.*https"):
        Settings.load()
    monkeypatch.setenv("BASE_URL", "https://people.example.org/")
    settings = Settings.load()
    assert settings.base_url == "https://people.example.org"
    assert settings.mail_sender == "no-reply@people.example.org"


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("tls", 465), ("none", 25)])
def test_the_port_follows_from_the_kind_of_tls(
    tls: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_TLS", tls)
    assert Settings.load().smtp_port_or_usual == port
    monkeypatch.setenv("SMTP_PORT", "2525")
    assert Settings.load().smtp_port_or_usual == 2525


def test_a_mail_password_crosses_no_network_in_clear_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMTP_USER", "quartapp")
    monkeypatch.setenv("SMTP_PASSWORD", "canary-mail")
    monkeypatch.setenv("SMTP_HOST", "post.example.org")
    assert "canary-mail" not in repr(Settings.load())
    monkeypatch.setenv("SMTP_TLS", "none")
    with pytest.raises(StartError, match="SMTP_TLS") as stopped:
        Settings.load()
    assert "canary-mail" not in str(stopped.value)
    monkeypatch.setenv("SMTP_HOST", "127.0.0.1")
    assert Settings.load().sends_mail
