"""The settings object: the rules that values have to meet together, and what follows from them."""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from quartapp.settings import fields
from quartapp.settings.values import LOOPBACK, StartError

LEAST_SECRET_BYTES = 32
LEAST_BCRYPT_COST = 10
SMTP_PORTS = {"tls": 465, "starttls": 587, "none": 25}


class Settings(
    fields.Deployment,
    fields.Database,
    fields.Keys,
    fields.Email,
    fields.Passwords,
    fields.Sessions,
    fields.Accounts,
    fields.RateLimits,
    fields.LivePages,
    fields.Launcher,
):
    """All settings of a deployment, declared in `fields`. Frozen.

    `Settings.load()` reads and checks them. The constructor reads them too, but checks each value
    only by itself.
    """

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Return the settings; `overrides` take precedence over the environment and `.env`.

        In development, without a SECRET_KEY, uses the key in the data folder, and creates the
        folder and the key if they are missing. In production, also refuses misspelt names, missing
        settings and values that are too weak. Everywhere refuses an SMTP user without TLS, unless
        the SMTP server is on this machine.

        Raises StartError. Its message names each setting at fault and shows no value.
        """
        settings = cls.read(**overrides)
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
    def wants_production(cls) -> bool:
        """Whether QUARTAPP_ENV is "production", even if other settings are invalid."""
        return cls.raw("QUARTAPP_ENV") == "production"

    @property
    def production(self) -> bool:
        return self.quartapp_env == "production"

    @property
    def knows_origin(self) -> bool:
        """Whether BASE_URL is set, as opposed to its default."""
        return "base_url" in self.model_fields_set

    @property
    def sends_mail(self) -> bool:
        """Whether emails are sent by SMTP. If not, they are kept as files in the data folder."""
        return bool(self.smtp_host)

    @property
    def verification_required(self) -> bool:
        """Whether an account can be used only after its email address was verified.

        Unless set, true in production and wherever emails are sent by SMTP.
        """
        if self.require_verified_email is not None:
            return self.require_verified_email
        return self.production or self.sends_mail

    @property
    def smtp_port_or_usual(self) -> int:
        """SMTP_PORT, else the usual port for the kind of TLS."""
        return self.smtp_port or SMTP_PORTS[self.smtp_tls]

    @property
    def mail_sender(self) -> str:
        """The address from which emails are sent: MAIL_FROM, else no-reply@ the host of BASE_URL.

        If that host is an IP address, no-reply@localhost.
        """
        host = urlsplit(self.base_url).hostname or ""
        is_name = host and not host.replace(".", "").isdigit() and ":" not in host
        return self.mail_from or f"no-reply@{host if is_name else 'localhost'}"

    @property
    def deletion_grace(self) -> timedelta:
        return timedelta(seconds=self.deletion_grace_seconds)

    def session_idle(self, *, remembered: bool) -> timedelta:
        """Return the time after which a session expires if it is not used."""
        return timedelta(
            seconds=self.remembered_idle_seconds if remembered else self.session_idle_seconds
        )

    def session_lifetime(self, *, remembered: bool) -> timedelta:
        """Return the time after which a session expires even if it is used."""
        return timedelta(
            seconds=self.remembered_lifetime_seconds
            if remembered
            else self.session_lifetime_seconds
        )

    def make_data_folder(self) -> None:
        """Create the data folder, with access for its owner only, if it does not exist.

        Does nothing if no file would be stored there and QUARTAPP_DATA is not set. Raises
        StartError if the folder cannot be created or written to.
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

    def _missing_in_production(self) -> list[str]:
        """Return a sentence for each setting that production needs and does not have.

        A SECRET_KEY of LEAST_SECRET_BYTES, a BCRYPT_COST of LEAST_BCRYPT_COST, a BASE_URL with
        https (or at a loopback host), and MONGODB_URI (or ALLOW_EMBEDDED_DATABASE).
        """
        faults = []
        size = len(self.secret_key.get_secret_value().encode())
        if size < LEAST_SECRET_BYTES:
            faults.append(
                f"SECRET_KEY: production needs at least {LEAST_SECRET_BYTES} bytes, "
                + (f"this one has {size}" if size else "none is set")
            )
        if self.bcrypt_cost < LEAST_BCRYPT_COST:
            faults.append(f"BCRYPT_COST: production needs at least {LEAST_BCRYPT_COST}")
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

    def _with_development_key(self) -> Self:
        """Return these settings with the key of the data folder, if no SECRET_KEY is set.

        Creates the folder and the key if they are missing. Raises StartError if that fails, or the
        key has fewer than LEAST_SECRET_BYTES.
        """
        if self.secret_key.get_secret_value():
            return self
        path = self.data / "secret_key"
        self.make_data_folder()
        try:
            key = _read_or_create_key(path)
        except (OSError, UnicodeError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
            raise StartError(f"cannot keep a secret key in {path}: {why}") from None
        if len(key.encode()) < LEAST_SECRET_BYTES:
            raise StartError(f"the secret key in {path} is too short: delete the file")
        return self.model_copy(update={"secret_key": SecretStr(key)})


def _read_or_create_key(path: Path) -> str:
    """Return the text of the file. If it is missing, create it with a new key, readable by its
    owner only.

    Of processes that do this at the same time, one creates the file and all return its text.
    """
    if not path.exists():
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            # Unlike a rename, a link does not replace a file that another process has created.
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
