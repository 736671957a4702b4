from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from quartapp.settings import Settings, StartError
from quartapp.settings.misspelt import misspelt

KEY = "k" * 32
NAMES = {
    str(field.validation_alias or name).upper(): name
    for name, field in Settings.model_fields.items()
}


# Messages may contain these words, because they show them as examples.
EXAMPLES = "https://people.example.org 10.0.0.0/8"


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all settings from the environment, and use a folder without `.env`."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_development_needs_no_settings(tmp_path: Path) -> None:
    settings = Settings.load()
    assert not settings.production
    assert settings.mongodb_uri is None
    assert settings.data.resolve() == tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QUARTAPP_ENV", "staging"),
        ("MONGODB_DB", "no/slash"),
        ("MONGODB_DB", "x" * 39),
        ("BCRYPT_COST", "3"),
        ("BCRYPT_COST", "17"),
        ("BCRYPT_COST", "twelve"),
        ("BCRYPT_THREADS", "0"),
        ("BCRYPT_QUEUE", "0"),
        ("FRESH_SECONDS", "0"),
        ("SESSION_IDLE_SECONDS", "59"),
        ("SESSION_LIFETIME_SECONDS", "-1"),
        ("REMEMBERED_IDLE_SECONDS", "1e"),
        ("REMEMBERED_LIFETIME_SECONDS", "0"),
        ("SESSIONS_PER_USER", "0"),
        ("LIVE_PING_SECONDS", "0"),
        ("LIVE_PING_SECONDS", "26"),
        ("LIVE_HIDE_SECONDS", "59"),
        ("LIVE_HIDE_SECONDS", "-1"),
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
        ("BASE_URL", "https://people.example.org?"),
        ("BASE_URL", "https://people.example.org:port"),
        ("BASE_URL", "https://[::1"),
        ("BASE_URL", "https://*.example.org"),
        ("BASE_URL", "https://a..b"),
        ("BASE_URL", "https://bücher.example"),
        ("ALLOWED_ORIGINS", "https://people.example.org"),
        ("ALLOWED_ORIGINS", '["*"]'),
        ("ALLOWED_ORIGINS", '["https://people.example.org/path"]'),
        ("ALLOWED_ORIGINS", '[""]'),
        ("ALLOWED_ORIGINS", "[7]"),
        ("ALLOWED_ORIGINS", "{}"),
        ("ALLOWED_ORIGINS", "[" * 100_000),
        ("TRUSTED_PROXIES", "10.0.0.0/8"),
        ("TRUSTED_PROXIES", '["10.0.0.1/8"]'),
        ("TRUSTED_PROXIES", '["proxy.example"]'),
        ("TRUSTED_PROXIES", '["10.0.0.0/8", null]'),
        ("SECRET_KEY_FALLBACKS", "not json"),
        ("SECRET_KEY_FALLBACKS", '[" "]'),
        ("SECRET_KEY", "k\udcff"),
        ("LIMIT_SIGN_IN", "often"),
        ("LIMIT_SIGN_IN", "0 per minute"),
        ("LIMIT_SIGN_IN", "5 per 99999999999999 years"),
        ("LIVE_PING_SECONDS", "inf"),
        ("LIVE_PING_SECONDS", "nan"),
        ("SESSION_IDLE_SECONDS", "9" * 20),
        ("SESSION_IDLE_SECONDS", "9" * 5000),
        ("ALLOW_OLD_MONGODB", "perhaps"),
        ("SMTP_HOST", "smtp.example.org:587"),
        ("SMTP_HOST", "smtp://example.org"),
        ("SMTP_PORT", "0"),
        ("SMTP_PORT", "tcp://10.0.0.1:25"),
        ("SMTP_TLS", "maybe"),
        ("MAIL_FROM", "no address"),
        ("MAIL_FROM", "a@b\r\nBcc:c@d"),
        ("SITE_NAME", "people\r\nBcc: eve@example.org"),
        ("SITE_NAME", "peo\tple"),
        ("SITE_NAME", "peo\u202eple"),
        ("SITE_NAME", "=?utf-8?q?people?="),
        ("SITE_NAME", "x" * 61),
    ],
)
def test_an_invalid_value_names_its_setting(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError) as stopped:
        Settings.load()
    said = str(stopped.value)
    assert said.startswith(f"{name}: ")
    assert len(said) < 200
    assert said.isascii()
    assert said.isprintable()
    for phrase in ("Value error", "Input should", "pydantic", "IPv4Network"):
        assert phrase not in said
    assert value not in said or len(value) < 3 or value in EXAMPLES


def test_error_messages_do_not_contain_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("canary", '["canary", 7]', "[canary]", '["canary", ""]'):
        monkeypatch.setenv("SECRET_KEY_FALLBACKS", value)
        with pytest.raises(StartError) as stopped:
            Settings.load()
        assert "canary" not in str(stopped.value)


@pytest.mark.parametrize("blank", ["", " ", "\t "])
def test_a_blank_setting_counts_as_unset(
    blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"secret_key": KEY}
    defaults = Settings.load(**key)
    (tmp_path / ".env").write_text("".join(f"{name}='{blank}'\n" for name in NAMES))
    assert Settings.load(**key) == defaults
    (tmp_path / ".env").write_text("BCRYPT_QUEUE=7\n")
    for name in NAMES:
        monkeypatch.setenv(name, blank)
    of_the_file = Settings.load(**key, metrics_token=SecretStr(blank))
    assert of_the_file == defaults.model_copy(update={"bcrypt_queue": 7})
    assert not of_the_file.knows_origin


def test_an_unreadable_settings_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"MAIL_FROM=\xff\xfe\n")
    with pytest.raises(StartError, match=r"\A\.env cannot be read") as stopped:
        Settings.load()
    assert "\n" not in str(stopped.value)


def test_origins_are_normalized_as_browsers_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE_URL", "HTTPS://People.Example.org:443/")
    monkeypatch.setenv("ALLOWED_ORIGINS", '["http://[::1]:80", "https://a.example:8443/"]')
    settings = Settings.load(secret_key=KEY)
    assert settings.base_url == "https://people.example.org"
    assert settings.allowed_origins == ["http://[::1]", "https://a.example:8443"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SMTP_HOSTT", "SMTP_HOST"),
        ("SMTP_USERNAME", "SMTP_USER"),
        ("SMTP_PASSWORD_FILE", "SMTP_PASSWORD"),
        ("smtp_pasword", "SMTP_PASSWORD"),
        ("BCRYPT_COSTS", "BCRYPT_COST"),
        ("SECRETKEY", "SECRET_KEY"),
        ("MONGO_URI", "MONGODB_URI"),
        ("MONGODB_URL", "MONGODB_URI"),
        ("BASEURL", "BASE_URL"),
        ("TRUSTED_PROXY", "TRUSTED_PROXIES"),
        ("ALLOWED_ORIGIN", "ALLOWED_ORIGINS"),
        ("SESSION_IDLE", "SESSION_IDLE_SECONDS"),
        ("QUARTAP_ENV", "QUARTAPP_ENV"),
        ("QUARTAPP_PORTS", None),
        ("LIMIT_EVERYTHING", None),
    ],
)
def test_a_misspelt_name_is_reported_with_the_intended_one(
    name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = misspelt([name], NAMES)
    assert list(found) == [name.upper()]
    assert meant in (None, found[name.upper()])
    for place in ("environment", ".env"):
        if place == ".env":
            monkeypatch.delenv(name)
            (tmp_path / ".env").write_text(f"{name}=canary\n")
        else:
            monkeypatch.setenv(name, "canary")
        monkeypatch.setenv("QUARTAPP_ENV", "development")
        Settings.load(secret_key=KEY)
        monkeypatch.setenv("QUARTAPP_ENV", "production")
        with pytest.raises(StartError, match=f"(?i){name}: there is no such setting") as stopped:
            Settings.load(secret_key=KEY)
        assert "canary" not in str(stopped.value)


def test_variables_of_other_programs_are_not_reported_as_misspelt() -> None:
    others = (
        "PATH HOME PORT HOST LANG USER SHELL TERM DATA DEBUG WEB_CONCURRENCY MAILTO HOSTNAME "
        "DATABASE_URL REDIS_URL SESSION_MANAGER SECRET_KEY_BASE AWS_SECRET_ACCESS_KEY "
        "S3_SECRET_KEY JWT_SECRET_KEY DJANGO_SECRET_KEY MONGO_INITDB_ROOT_PASSWORD "
        "MONGODB_VERSION MOTOR_MAX_WORKERS PROMETHEUS_MULTIPROC_DIR XDG_RUNTIME_DIR "
        "QUARTAPP_SERVICE_HOST QUARTAPP_SERVICE_PORT QUARTAPP_SERVICE_PORT_HTTP QUARTAPP_PORT "
        "QUARTAPP_PORT_80_TCP QUARTAPP_PORT_80_TCP_ADDR SMTP_PORT_25_TCP MONGODB_PORT "
        "MONGODB_SERVICE_HOST SITE_URL LIVE_RELOAD PYTHONWARNINGS BASE_IMAGE"
    )
    assert misspelt(others.split(), NAMES) == {}
    assert misspelt(NAMES, NAMES) == {}


def test_all_invalid_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCRYPT_COST", "x")
    monkeypatch.setenv("LIVE_MAILBOX", "y")
    with pytest.raises(StartError, match=r"BCRYPT_COST: .*; LIVE_MAILBOX: "):
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
@pytest.mark.usefixtures("production")
def test_production_accepts_a_key_of_32_bytes(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_development_key_is_created_once_with_private_file_mode(tmp_path: Path) -> None:
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


def test_concurrent_starts_create_one_key(tmp_path: Path) -> None:
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


def test_a_configured_key_is_used_and_none_is_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_KEY", "short")
    assert Settings.load().secret_key.get_secret_value() == "short"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "loop"])
def test_a_data_folder_that_cannot_be_created_stops_the_start(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StartError, match=r"\Acannot create the data folder ") as stopped:
        Settings.load(data=tmp_path / place)
    assert "\n" not in str(stopped.value)


def test_a_read_only_data_folder_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StartError, match="cannot write to the data folder"):
        Settings.load(data=tmp_path)


@pytest.mark.usefixtures("production")
def test_production_creates_a_data_folder_only_if_used_or_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_text("")
    monkeypatch.setenv("SMTP_HOST", "smtp.example.org")
    Settings.load().make_data_folder()
    for changes in ({"smtp_host": ""}, {"mongodb_uri": None}):
        with pytest.raises(StartError, match="data folder"):
            Settings.load().model_copy(update=changes).make_data_folder()
    with pytest.raises(StartError, match="data folder"):
        Settings.load(data=tmp_path / "data").make_data_folder()


def test_the_environment_takes_precedence_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("BCRYPT_COST=11\nBCRYPT_QUEUE=5\nUNKNOWN=1\n")
    monkeypatch.setenv("BCRYPT_QUEUE", "6")
    settings = Settings.load()
    assert (settings.bcrypt_cost, settings.bcrypt_queue) == (11, 6)


def test_a_variable_named_data_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Set all settings that production needs."""
    monkeypatch.setenv("QUARTAPP_ENV", "production")
    monkeypatch.setenv("SECRET_KEY", KEY)
    monkeypatch.setenv("BASE_URL", "https://people.example.org/")
    monkeypatch.setenv("MONGODB_URI", "mongodb://db.example.org")


@pytest.mark.usefixtures("production")
@pytest.mark.parametrize("missing", ["SECRET_KEY", "BASE_URL", "MONGODB_URI"])
def test_production_reports_all_missing_settings(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings.load().mail_sender == "no-reply@people.example.org"
    monkeypatch.setenv(missing, "")
    monkeypatch.setenv("BCRYPT_COST", "9")
    with pytest.raises(StartError) as stopped:
        Settings.load()
    assert {fault.split(":")[0] for fault in str(stopped.value).split("; ")} == {
        missing,
        "BCRYPT_COST",
    }


@pytest.mark.usefixtures("production")
def test_production_uses_the_embedded_database_only_if_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MONGODB_URI")
    with pytest.raises(StartError, match=r"\AMONGODB_URI: .*ALLOW_EMBEDDED_DATABASE=true"):
        Settings.load()
    monkeypatch.setenv("ALLOW_EMBEDDED_DATABASE", "true")
    assert Settings.load().mongodb_uri is None


@pytest.mark.usefixtures("production")
def test_production_requires_https_or_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE_URL", "http://people.example.org")
    with pytest.raises(StartError, match=r"BASE_URL.*https"):
        Settings.load()
    monkeypatch.setenv("BASE_URL", "http://localhost:5000")
    assert Settings.load().base_url == "http://localhost:5000"


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("tls", 465), ("none", 25)])
def test_the_default_smtp_port_depends_on_tls(
    tls: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_TLS", tls)
    assert Settings.load().smtp_port_or_usual == port
    monkeypatch.setenv("SMTP_PORT", "2525")
    assert Settings.load().smtp_port_or_usual == 2525


def test_an_smtp_password_requires_tls_and_is_never_shown(
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


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("where", ["development", "smtp", "production"])
def test_verification_is_required_in_production_and_with_smtp(
    where: str, said: bool | None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if where == "production":
        request.getfixturevalue("production")
    elif where == "smtp":
        monkeypatch.setenv("SMTP_HOST", "post.example.org")
    if said is not None:
        monkeypatch.setenv("REQUIRE_VERIFIED_EMAIL", str(said).lower())
    expected = where != "development" if said is None else said
    assert Settings.load().verification_required is expected
