"""One typed settings object, read from the environment and from `.env`.

A value that cannot be used stops the start with its name: see `Settings.load`.
"""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import limits
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

LEAST_SECRET_BYTES = 32


SMTP_PORTS = {"tls": 465, "starttls": 587, "none": 25}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class StartError(Exception):
    """The application cannot start. Its text is one line, written for the person who started it."""


def _origin(text: str) -> str:
    """A scheme and a host, and a port if need be; nothing behind them but a slash."""
    parts = urlsplit(text.rstrip("/"))
    plain = text.isascii() and text.isprintable() and not set(text) & set(" <>\"'\\")
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write an origin, like https://people.example.org")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or parts.port == 0:
        raise ValueError("write the origin alone, without a path or a user")
    return text.rstrip("/")


def _limit(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        limit = limits.parse(value)
    except ValueError:
        raise ValueError('write it like "10 per 5 minutes"') from None
    if limit.amount < 1 or limit.multiples < 1:
        raise ValueError("nothing at all would be let in")
    return limit


Limit = Annotated[
    limits.RateLimitItem, BeforeValidator(_limit), PlainSerializer(repr, return_type=str)
]


class Settings(BaseSettings):
    """What a deployment may decide. The README has the table; times are in seconds."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, arbitrary_types_allowed=True
    )

    quartapp_env: Literal["development", "production"] = "development"
    data: Path = Field(default=Path("data"), validation_alias="QUARTAPP_DATA")
    worker: str = Field(default="0", validation_alias="QUARTAPP_WORKER")
    neighbours: Path | None = Field(default=None, validation_alias="QUARTAPP_NEIGHBOURS")
    mongodb_uri: SecretStr | None = None
    mongodb_db: str = Field(default="quartapp", pattern=r"^[A-Za-z0-9_-]{1,38}$")
    secret_key: SecretStr = SecretStr("")
    secret_key_fallbacks: list[SecretStr] = []
    allowed_origins: list[str] = []
    trusted_proxies: list[IPv4Network | IPv6Network] = []

    base_url: Annotated[str, AfterValidator(_origin)] = "http://127.0.0.1:5000"
    smtp_host: str = ""
    smtp_port: int | None = Field(default=None, ge=1, le=65535)
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")
    mail_from: str | None = Field(default=None, pattern=r"^[!-~]{1,64}@[!-~]{1,253}$")

    metrics_token: SecretStr | None = None

    bcrypt_cost: int = Field(default=12, ge=4, le=16)
    bcrypt_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=64)
    bcrypt_queue: int = Field(default=32, ge=1)

    session_idle_seconds: int = Field(default=30 * 60, ge=60)
    session_lifetime_seconds: int = Field(default=8 * 3600, ge=60)
    remembered_idle_seconds: int = Field(default=14 * 86400, ge=60)
    remembered_lifetime_seconds: int = Field(default=30 * 86400, ge=60)
    sessions_per_user: int = Field(default=20, ge=1)
    fresh_seconds: int = Field(default=15 * 60, ge=1)
    invitations_per_user: int = Field(default=50, ge=1)
    passkeys_per_user: int = Field(default=20, ge=1)
    reset_links_per_user: int = Field(default=3, ge=1)
    tries_per_code: int = Field(default=5, ge=1, le=100)
    deletion_grace_seconds: int = Field(default=14 * 86400, ge=60, le=400 * 86400)

    limit_sign_in: Limit = limits.parse("5 per 5 minutes")
    limit_sign_in_account: Limit = limits.parse("10 per 5 minutes")
    limit_sign_in_address: Limit = limits.parse("100 per 5 minutes")
    limit_confirmation: Limit = limits.parse("5 per 5 minutes")
    limit_factor: Limit = limits.parse("5 per 5 minutes")
    limit_registration: Limit = limits.parse("1000 per hour")
    limit_recovery: Limit = limits.parse("60 per hour")
    limit_letter: Limit = limits.parse("5 per hour")
    limit_letter_address: Limit = limits.parse("20 per day")
    limit_invitation: Limit = limits.parse("5 per day")
    limit_export: Limit = limits.parse("1 per 5 minutes")
    limit_handshake_user: Limit = limits.parse("600 per minute")
    limit_handshake_address: Limit = limits.parse("60000 per minute")

    live_ping_seconds: float = Field(default=20, gt=0)
    live_sweep_seconds: float = Field(default=30, gt=0)
    live_mailbox: int = Field(default=32, ge=1)
    sockets_per_session: int = Field(default=20, ge=1)
    sockets_per_user: int = Field(default=100, ge=1)
    sockets_per_address: int = Field(default=5_000, ge=1)
    principals_per_worker: int = Field(default=20_000, ge=0)
    sockets_per_worker: int = Field(default=10_000, ge=1)
    handshakes_at_once: int = Field(default=200, ge=1)

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Reads the environment. Raises StartError, naming each setting that cannot be used."""
        if "data" in overrides:
            # Allowing fields by their own names would also read a variable called DATA.
            overrides["QUARTAPP_DATA"] = overrides.pop("data")
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, f['loc'])).upper()}: {f['msg']}" for f in error.errors())
            raise StartError("; ".join(faults)) from None
        except SettingsError as error:
            # Raised before any value is looked at; its text has the name in quotes.
            name = str(error).split('"')[1].upper()
            raise StartError(f'{name}: write a JSON list, like ["one", "two"]') from None
        if (
            settings.smtp_user
            and settings.smtp_tls == "none"
            and settings.smtp_host not in LOOPBACK
        ):
            raise StartError("SMTP_TLS: a password is sent to another machine only with TLS")
        if not settings.production:
            return settings._with_development_key()
        size = len(settings.secret_key.get_secret_value().encode())
        if size < LEAST_SECRET_BYTES:
            raise StartError(
                f"SECRET_KEY: production needs at least {LEAST_SECRET_BYTES} bytes, "
                + (f"this one has {size}" if size else "none is set")
            )
        if settings.bcrypt_cost < 10:
            raise StartError("BCRYPT_COST: production needs at least 10")
        settings._require_an_origin()
        return settings

    @property
    def production(self) -> bool:
        return self.quartapp_env == "production"

    @property
    def knows_origin(self) -> bool:
        """Whether somebody has said under which origin this is served."""
        return "base_url" in self.model_fields_set

    @property
    def sends_mail(self) -> bool:
        """By SMTP. Else letters are kept as files in the data folder."""
        return bool(self.smtp_host)

    @property
    def smtp_port_or_usual(self) -> int:
        return self.smtp_port or SMTP_PORTS[self.smtp_tls]

    @property
    def mail_sender(self) -> str:
        """The address that letters come from."""
        host = urlsplit(self.base_url).hostname or ""
        named = host and not host.replace(".", "").isdigit() and ":" not in host
        return self.mail_from or f"no-reply@{host if named else 'localhost'}"

    def _require_an_origin(self) -> None:
        """Links in letters lead where this says. The Host header is what a stranger says."""
        if not self.knows_origin:
            if self.sends_mail:
                raise StartError("BASE_URL: production needs it for the links in letters")
            return
        parts = urlsplit(self.base_url)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise StartError("BASE_URL: production needs https")

    @property
    def deletion_grace(self) -> timedelta:
        return timedelta(seconds=self.deletion_grace_seconds)

    def session_idle(self, *, remembered: bool) -> timedelta:
        return timedelta(
            seconds=self.remembered_idle_seconds if remembered else self.session_idle_seconds
        )

    def session_lifetime(self, *, remembered: bool) -> timedelta:
        return timedelta(
            seconds=self.remembered_lifetime_seconds
            if remembered
            else self.session_lifetime_seconds
        )

    def _with_development_key(self) -> Settings:
        """Development needs no key to be set: one is made once and kept, readable by its owner."""
        if self.secret_key.get_secret_value():
            return self
        path = self.data / "secret_key"
        try:
            self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = _read_or_create(path)
        except OSError as error:
            raise StartError(f"cannot keep a secret key in {path}: {error.strerror}") from None
        if len(key.encode()) < LEAST_SECRET_BYTES:
            raise StartError(f"the secret key in {path} is too short: delete the file")
        return self.model_copy(update={"secret_key": SecretStr(key)})


def _read_or_create(path: Path) -> str:
    """The text of the file, made if it is missing, by one of those who start at once."""
    if not path.exists():
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
