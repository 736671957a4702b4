"""One typed settings object, read from the environment and from `.env`.

A blank value counts as unset. A value that cannot be used stops the start: see `Settings.load`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import limits
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from quartapp.environment import misspelt

LEAST_SECRET_BYTES = 32
LONGEST_SECONDS = 10 * 366 * 86400

SMTP_PORTS = {"tls": 465, "starttls": 587, "none": 25}
DEFAULT_PORTS = {"http": 80, "https": 443}

# Into so many parts the mail budget of a mailbox is divided: see models.email.mailbox.
MAIL_SHARES = 6
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")


class StartError(Exception):
    """The application cannot start. Its text is one line, written for the person who started it."""


def _origin(text: str) -> str:
    """Return the origin as browsers write it: lower case, and without the scheme's own port."""
    example = "write an origin, like https://people.example.org"
    try:
        parts = urlsplit(text.rstrip("/").lower())
        port = parts.port
    except ValueError:
        raise ValueError(example) from None
    host = parts.hostname or ""
    if parts.scheme not in DEFAULT_PORTS or port == 0 or not _is_host(host):
        raise ValueError(example)
    origin = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
    with_port = f"{origin}:{port or DEFAULT_PORTS[parts.scheme]}"
    if text.rstrip("/").lower() not in (origin, with_port):
        raise ValueError("write the origin alone, without a path or a user")
    return origin if port in (None, DEFAULT_PORTS[parts.scheme]) else with_port


def _is_host(text: str) -> bool:
    """Whether it is an IP address without brackets, or an ASCII name without empty labels."""
    try:
        ip_address(text)
    except ValueError:
        return bool(HOST.fullmatch(text.lower())) and ".." not in text and len(text) <= 253
    return "%" not in text


def _range_service(text: object) -> object:
    """None for "off", or the https address of a service; http is for one on this machine."""
    if not isinstance(text, str) or text.strip().lower() in ("", "off"):
        return None
    parts = urlsplit(text)
    plain = text.isascii() and text.isprintable() and " " not in text
    secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if not plain or not secure or not parts.hostname or parts.query or parts.fragment:
        raise ValueError('write "off", or an address like https://api.pwnedpasswords.com/range')
    return text


def _limit(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        limit = limits.parse(value)
        lasts = limit.get_expiry()
    except (ValueError, OverflowError):
        raise ValueError('write it like "10 per 5 minutes"') from None
    if limit.amount < 1 or limit.multiples < 1:
        raise ValueError("nothing at all would be let in")
    if lasts > LONGEST_SECONDS:
        raise ValueError("write a period of at most ten years")
    return limit


def _listed(example: str) -> Callable[[object], object]:
    """Return a validator that reads a JSON list of texts."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(e, str) and e.strip() for e in found):
            raise ValueError(f"write a JSON list of texts, like {example}")
        return found

    return read


def _network(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            "write addresses and networks, like 192.0.2.1 or 10.0.0.0/8, not names"
        ) from None
    raise ValueError(f"this network begins at another address: write {meant}")


def _smtp_host(text: str) -> str:
    if text and not _is_host(text):
        raise ValueError("write the name of a host alone, like smtp.example.org")
    return text


def _matching(pattern: str, rule: str) -> AfterValidator:
    def check(text: str | None) -> str | None:
        if text is not None and not re.fullmatch(pattern, text):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


Limit = Annotated[
    limits.RateLimitItem, BeforeValidator(_limit), PlainSerializer(repr, return_type=str)
]
Seconds = Annotated[int, Field(ge=60, le=LONGEST_SECONDS)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Pause = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


def _for_shares(limit: limits.RateLimitItem) -> limits.RateLimitItem:
    if limit.amount < MAIL_SHARES:
        raise ValueError(f"at least {MAIL_SHARES} emails, so that each kind has room")
    return limit


def _printable(text: str) -> str:
    if not text.isprintable() or len(text) > 200:
        raise ValueError("write an email address, a link or a short text, on one line")
    return text.strip()


class Settings(BaseSettings):
    """What a deployment may decide. The README has the table; times are in seconds."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, arbitrary_types_allowed=True
    )

    quartapp_env: Literal["development", "production"] = "development"
    data: Path = Field(default=Path("data"), validation_alias="QUARTAPP_DATA")
    worker: str = Field(default="0", validation_alias="QUARTAPP_WORKER")
    worker_id: str | None = Field(default=None, validation_alias="QUARTAPP_WORKER_ID")
    neighbours: Path | None = Field(default=None, validation_alias="QUARTAPP_NEIGHBOURS")
    mongodb_uri: SecretStr | None = None
    mongodb_db: Annotated[
        str, _matching(r"[A-Za-z0-9_-]{1,38}", "use 1 to 38 letters, digits, - or _")
    ] = "quartapp"
    allow_embedded_database: bool = False
    allow_old_mongodb: bool = False
    secret_key: SecretStr = SecretStr("")
    secret_key_fallbacks: Annotated[
        list[SecretStr], NoDecode, BeforeValidator(_listed('["the key before this one"]'))
    ] = []
    allowed_origins: Annotated[
        list[Annotated[str, AfterValidator(_origin)]],
        NoDecode,
        BeforeValidator(_listed('["https://people.example.org"]')),
    ] = []
    trusted_proxies: Annotated[
        list[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]],
        NoDecode,
        BeforeValidator(_listed('["10.0.0.0/8"]')),
    ] = []

    base_url: Annotated[str, AfterValidator(_origin)] = "http://127.0.0.1:5000"
    smtp_host: Annotated[str, AfterValidator(_smtp_host)] = ""
    smtp_port: int | None = Field(default=None, ge=1, le=65535)
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")
    mail_from: Annotated[
        str | None,
        _matching(r"[!-~]{1,64}@[!-~]{1,253}", "write an address, like no-reply@example.org"),
    ] = None

    require_verified_email: bool | None = None
    support_contact: Annotated[str, AfterValidator(_printable)] = ""

    metrics_token: SecretStr | None = None

    # "off" is None here.
    breached_passwords: Annotated[str | None, BeforeValidator(_range_service)] = None

    # The SECURITY_PASSWORD_SALT of an application whose users were imported: see README.
    flask_security_salt: SecretStr | None = None

    bcrypt_cost: int = Field(default=12, ge=4, le=16)
    bcrypt_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=64)
    bcrypt_queue: Count = 32

    session_idle_seconds: Seconds = 30 * 60
    session_lifetime_seconds: Seconds = 8 * 3600
    remembered_idle_seconds: Seconds = 14 * 86400
    remembered_lifetime_seconds: Seconds = 30 * 86400
    sessions_per_user: Count = 20
    fresh_seconds: int = Field(default=15 * 60, ge=1, le=LONGEST_SECONDS)
    invitations_per_user: Count = 50
    passkeys_per_user: Count = 20
    reset_links_per_user: Count = 3
    tries_per_code: int = Field(default=5, ge=1, le=100)
    deletion_grace_seconds: int = Field(default=14 * 86400, ge=60, le=400 * 86400)

    limit_sign_in: Limit = limits.parse("5 per 5 minutes")
    limit_sign_in_account: Limit = limits.parse("10 per 5 minutes")
    limit_sign_in_address: Limit = limits.parse("100 per 5 minutes")
    limit_confirmation: Limit = limits.parse("5 per 5 minutes")
    limit_factor: Limit = limits.parse("5 per 5 minutes")
    limit_registration: Limit = limits.parse("1000 per hour")
    limit_recovery: Limit = limits.parse("60 per hour")
    limit_mail: Annotated[Limit, AfterValidator(_for_shares)] = limits.parse("30 per hour")
    limit_letter: Limit = limits.parse("5 per hour")
    limit_letter_address: Limit = limits.parse("20 per day")
    limit_invitation: Limit = limits.parse("5 per day")
    limit_post: Limit = limits.parse("30 per hour")
    limit_comment: Limit = limits.parse("60 per hour")
    limit_factor_change: Limit = limits.parse("60 per hour")
    limit_export: Limit = limits.parse("1 per 5 minutes")
    limit_handshake_user: Limit = limits.parse("600 per minute")
    limit_handshake_address: Limit = limits.parse("60000 per minute")

    drain_seconds: float = Field(default=0, ge=0, le=3600, allow_inf_nan=False)
    live_ping_seconds: Pause = 20
    live_sweep_seconds: Pause = 30
    live_mailbox: Count = 32
    sockets_per_session: Count = 20
    sockets_per_user: Count = 100
    sockets_per_address: Count = 5_000
    principals_per_worker: int = Field(default=20_000, ge=0, le=10**9)
    sockets_per_worker: Count = 10_000
    handshakes_at_once: Count = 200

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        # Python keeps bytes of the environment that are not UTF-8 as lone surrogates.
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise ValueError("this is not UTF-8 text")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment, then `.env`. A blank value in one does not hide the other's."""
        for source in (env_settings, dotenv_settings):
            assert isinstance(source, EnvSettingsSource)
            source.env_vars = {
                name: value for name, value in source.env_vars.items() if value and value.strip()
            }
        return init_settings, env_settings, dotenv_settings

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Return the settings of the environment and of `.env`; overrides go before both.

        Creates the key of a development in the data folder if it has none. Raises StartError, whose
        text names each setting that cannot be used and never shows a value.
        """
        overrides = {
            name: value for name, value in overrides.items() if not _is_blank(_plain_text(value))
        }
        if "data" in overrides:
            # Allowing fields by their own names would also read a variable called DATA.
            overrides["QUARTAPP_DATA"] = overrides.pop("data")
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            faults = dict.fromkeys(f"{_name(f)}: {cls._fault(f)}" for f in error.errors())
            raise StartError("; ".join(faults)) from None
        except SettingsError as error:
            # Raised before any value is looked at; its text has the name in quotes.
            name = str(error).split('"')[1].upper()
            raise StartError(f'{name}: write a JSON list, like ["one", "two"]') from None
        except (OSError, UnicodeError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
            raise StartError(f".env cannot be read: {why}") from None
        if (
            settings.smtp_user
            and settings.smtp_tls == "none"
            and settings.smtp_host not in LOOPBACK
        ):
            raise StartError("SMTP_TLS: a password is sent to another machine only with TLS")
        if not settings.production:
            return settings._with_development_key()
        if faults := [*cls.unknown_names(), *settings._missing_in_production()]:
            raise StartError("; ".join(faults))
        return settings

    @classmethod
    def unknown_names(cls) -> list[str]:
        """Return a sentence for each name in the environment or `.env` that looks misspelt."""
        known = {
            str(field.validation_alias or name).upper() for name, field in cls.model_fields.items()
        }
        names = (*EnvSettingsSource(cls).env_vars, *DotEnvSettingsSource(cls).env_vars)
        return [
            f"{name}: there is no such setting" + (f", did you mean {closest}?" if closest else "")
            for name, closest in misspelt(names, known).items()
        ]

    @classmethod
    def _fault(cls, error: ErrorDetails) -> str:
        """Say in plain words what is wrong with a value, without the value."""
        kind = error["type"]
        if kind == "value_error":
            return str(error.get("ctx", {})["error"])
        if kind == "literal_error":
            return f"write {error.get('ctx', {})['expected']}"
        if kind.startswith("bool"):
            return "write true or false"
        field = next(
            field
            for name, field in cls.model_fields.items()
            if str(field.validation_alias or name).upper() == _name(error)
        )
        numbers = {int, float} & {field.annotation, *get_args(field.annotation)}
        if not numbers:
            return "this value cannot be used"
        least, above, most = (
            next((getattr(m, bound) for m in field.metadata if hasattr(m, bound)), None)
            for bound in ("ge", "gt", "le")
        )
        start = f"from {least}" if above is None else f"above {above}"
        return f"write a {'whole ' if int in numbers else ''}number {start} to {most}"

    def _missing_in_production(self) -> list[str]:
        faults = []
        size = len(self.secret_key.get_secret_value().encode())
        if size < LEAST_SECRET_BYTES:
            faults.append(
                f"SECRET_KEY: production needs at least {LEAST_SECRET_BYTES} bytes, "
                + (f"this one has {size}" if size else "none is set")
            )
        if self.bcrypt_cost < 10:
            faults.append("BCRYPT_COST: production needs at least 10")
        parts = urlsplit(self.base_url)
        if not self.knows_origin:
            faults.append(
                "BASE_URL: production needs the address that people open, like "
                "https://people.example.org"
            )
        elif parts.scheme != "https" and parts.hostname not in LOOPBACK:
            faults.append("BASE_URL: production needs https")
        if self.mongodb_uri is None and not self.allow_embedded_database:
            faults.append(
                "MONGODB_URI: production needs the address of a MongoDB replica set "
                "(ALLOW_EMBEDDED_DATABASE=true allows the embedded database)"
            )
        return faults

    @classmethod
    def raw(cls, name: str) -> str:
        """Return what the environment, or else `.env`, has under this name; empty if it is blank.

        Also where other settings cannot be used.
        """
        with suppress(OSError, UnicodeError):
            for source in (EnvSettingsSource(cls), DotEnvSettingsSource(cls)):
                if value := (source.env_vars.get(name.lower()) or "").strip():
                    return value
        return ""

    @classmethod
    def wants_production(cls) -> bool:
        return cls.raw("QUARTAPP_ENV") == "production"

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
    def verification_required(self) -> bool:
        """Whether an account can be used only after its email address was verified.

        By default in production and wherever mail is sent by SMTP.
        """
        if self.require_verified_email is not None:
            return self.require_verified_email
        return self.production or self.sends_mail

    @property
    def smtp_port_or_usual(self) -> int:
        return self.smtp_port or SMTP_PORTS[self.smtp_tls]

    @property
    def mail_sender(self) -> str:
        """The address that letters come from."""
        host = urlsplit(self.base_url).hostname or ""
        named = host and not host.replace(".", "").isdigit() and ":" not in host
        return self.mail_from or f"no-reply@{host if named else 'localhost'}"

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

    def make_data_folder(self) -> None:
        """Create the data folder, unless nothing is kept there and nobody has named one.

        Raises StartError if that fails or the folder cannot be written to.
        """
        is_used = self.mongodb_uri is None or not self.sends_mail or not self.production
        if not is_used and "data" not in self.model_fields_set:
            return
        try:
            self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            why = "there is a file of this name" if os.path.isfile(self.data) else error.strerror
            raise StartError(f"cannot create the data folder {self.data}: {why}") from None
        if not os.access(self.data, os.R_OK | os.W_OK | os.X_OK):
            raise StartError(f"cannot write to the data folder {self.data}: permission denied")

    def _with_development_key(self) -> Settings:
        """Development needs no key to be set: one is made once and kept, readable by its owner."""
        if self.secret_key.get_secret_value():
            return self
        path = self.data / "secret_key"
        self.make_data_folder()
        try:
            key = _read_or_create(path)
        except (OSError, UnicodeError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
            raise StartError(f"cannot keep a secret key in {path}: {why}") from None
        if len(key.encode()) < LEAST_SECRET_BYTES:
            raise StartError(f"the secret key in {path} is too short: delete the file")
        return self.model_copy(update={"secret_key": SecretStr(key)})


def _plain_text(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _name(error: ErrorDetails) -> str:
    return str(error["loc"][0]).upper()


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
