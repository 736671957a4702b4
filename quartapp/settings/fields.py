"""Every setting with its type, its default and its description, in groups.

The text below a field is its description in docs/settings.md. After a change, run
`python -m quartapp.settings.reference docs/settings.md` to write that page again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import limits
from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from quartapp.settings.sources import FromEnvironment
from quartapp.settings.values import (
    LONGEST_SECONDS,
    UNBOUNDED,
    Count,
    Doc,
    Host,
    Limit,
    MailLimit,
    Network,
    OneLine,
    Origin,
    Pause,
    PingInterval,
    RangeService,
    Seconds,
    SilentTime,
    SiteName,
    json_list,
    matching,
)


class Group(FromEnvironment):
    """Settings that belong together. The docstring is the heading in docs/settings.md."""


class Deployment(Group):
    """Deployment"""

    quartapp_env: Literal["development", "production"] = "development"
    """`production` turns on `__Host-` cookies with the Secure attribute, HSTS and JSON logs, and
    requires `SECRET_KEY`, `BASE_URL` and `MONGODB_URI`. `development` listens on the loopback
    interface only."""
    data: Path = Field(default=Path("data"), validation_alias="QUARTAPP_DATA")
    """The data folder. It holds the embedded database, the development key, and emails if
    `SMTP_HOST` is not set. The option `--data` overrides it."""
    base_url: Annotated[Origin, Doc(default="the address that is served")] = "http://127.0.0.1:5000"
    """The origin under which people open the site. Links in emails and on the terminal start with
    it, and passkeys belong to its host. The `Host` header is never used for that. Required in
    production, with `https`."""
    site_name: SiteName = "quartapp"
    """Name of the site, as people read it: in page titles, the page header and emails, and in
    authenticator apps and passkey prompts. New passwords may not be little more than this name.
    Changing it affects no key, password, session or link. Apps and passkeys that were set up
    before keep showing the old name."""
    allowed_origins: Annotated[
        list[Origin],
        NoDecode,
        BeforeValidator(json_list('["https://people.example.org"]')),
        Doc(takes='JSON list of origins, such as `["https://people.example.org"]`'),
    ] = []
    """Further origins from which forms and sockets are accepted. Their hosts are served like that
    of `BASE_URL`. Requests for other hosts are refused."""
    trusted_proxies: Annotated[
        list[Network],
        NoDecode,
        BeforeValidator(json_list('["10.0.0.0/8"]')),
        Doc(takes='JSON list of IP addresses and networks, such as `["10.0.0.0/8"]`'),
    ] = []
    """Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` headers are trusted."""
    support_contact: OneLine = ""
    """The contact that users of a disabled account are shown after they entered the right password:
    an email address, a link or a short text."""
    metrics_token: SecretStr | None = None
    """Token that allows reading `/metrics` with `Authorization: Bearer TOKEN`. Without it,
    production refuses everyone."""
    drain_seconds: float = Field(default=0, ge=0, le=3600, allow_inf_nan=False)
    """Time for which a server that received SIGTERM still serves requests, while `/readyz` answers
    503, so that a load balancer can stop sending requests."""
    fast_path: bool = True
    """`false` or `off` runs without the classes that only make the server faster
    (`quartapp/serving/hypercorn_latency.py`). Everything behaves the same. Use it to find out
    whether one of them causes a problem."""


class Database(Group):
    """Database"""

    mongodb_uri: Annotated[SecretStr | None, Doc(takes="a MongoDB connection string")] = None
    """Address of a MongoDB replica set, which may have a single member. Production requires it,
    with MongoDB 7.0 or newer. Without it, an embedded `mongod` runs in the data folder and listens
    on a Unix socket only."""
    mongodb_db: Annotated[
        str,
        matching(r"[A-Za-z0-9_-]{1,38}", "use 1 to 38 letters, digits, - or _"),
        Doc(takes="1 to 38 letters, digits, `-` or `_`"),
    ] = "quartapp"
    """Name of the database."""
    allow_embedded_database: bool = False
    """Lets production start with the embedded database."""
    allow_old_mongodb: bool = False
    """Lets production start with a MongoDB older than 7.0."""


class Keys(Group):
    """Keys"""

    secret_key: Annotated[
        SecretStr, Doc(default="in development, created once and kept in the data folder")
    ] = SecretStr("")
    """Signs cookies, encrypts the secrets of authenticator apps, and keys the digests of passwords.
    Production requires at least 32 bytes. **If you lose it, no stored password works any more.**"""
    secret_key_fallbacks: Annotated[
        list[SecretStr],
        NoDecode,
        BeforeValidator(json_list('["the key before this one"]')),
        Doc(takes="JSON list of keys"),
    ] = []
    """Older keys that are still accepted. Passwords and the secrets of authenticator apps move to
    `SECRET_KEY` when their owners sign in."""


class Email(Group):
    """Email"""

    smtp_host: Host = ""
    """The mail server. Without it, emails are written to `mail/*.eml` in the data folder, and
    development shows them at `/dev/mail`."""
    smtp_port: Annotated[
        int | None, Doc(default="587, 465 or 25, for `starttls`, `tls` or `none`")
    ] = Field(default=None, ge=1, le=65535)
    """Port of the mail server."""
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection to the mail server is encrypted: `tls` from the first byte, `starttls`
    after a plain greeting. The certificate of the server is verified."""
    smtp_user: str = ""
    """User name for the mail server, if it asks for one."""
    smtp_password: SecretStr = SecretStr("")
    """Password for the mail server. It is sent to another machine only over TLS."""
    mail_from: Annotated[
        str | None,
        matching(r"[!-~]{1,64}@[!-~]{1,253}", "write an address, like no-reply@example.org"),
        Doc(takes="an email address", default="`no-reply@` and the host of `BASE_URL`"),
    ] = None
    """Address from which emails are sent."""
    require_verified_email: Annotated[
        bool | None, Doc(default="`true` in production or if `SMTP_HOST` is set, else `false`")
    ] = None
    """Whether an account can be used only after its email address was verified."""


class Passwords(Group):
    """Passwords"""

    bcrypt_cost: int = Field(default=12, ge=4, le=16)
    """Cost of new bcrypt hashes. Each step doubles the time. Production requires at least 10."""
    bcrypt_threads: Annotated[int, Doc(default="number of CPU cores")] = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, le=64
    )
    """Number of passwords that a worker hashes at the same time."""
    bcrypt_queue: Count = 32
    """Number of passwords that may wait to be hashed in a worker. Requests beyond it are answered
    with 503."""
    breached_passwords: RangeService = None
    """Address of a service with the range protocol of Have I Been Pwned, such as
    `https://api.pwnedpasswords.com/range`. New passwords that it knows are refused. It receives
    five hexadecimal digits of a hash."""
    flask_security_salt: SecretStr | None = None
    """The `SECURITY_PASSWORD_SALT` of the application from which users were imported with
    `--scheme flask-security`."""


class Sessions(Group):
    """Sessions"""

    session_idle_seconds: Seconds = 30 * 60
    """Time after which a session expires if it is not used."""
    session_lifetime_seconds: Seconds = 8 * 3600
    """Time after which a session expires even if it is used."""
    remembered_idle_seconds: Seconds = 14 * 86400
    """`SESSION_IDLE_SECONDS` for sessions that began with "keep me signed in"."""
    remembered_lifetime_seconds: Seconds = 30 * 86400
    """`SESSION_LIFETIME_SECONDS` for sessions that began with "keep me signed in"."""
    sessions_per_user: Count = 20
    """Active sessions of one user. One more ends the oldest."""
    fresh_seconds: int = Field(default=15 * 60, ge=1, le=LONGEST_SECONDS)
    """Time after a sign-in, or after re-entering the password, in which sensitive actions do not
    ask for the password."""


class Accounts(Group):
    """Accounts"""

    invitations_per_user: Count = 50
    """Open invitations of one administrator."""
    passkeys_per_user: Count = 20
    """Passkeys of one account."""
    reset_links_per_user: Count = 3
    """Links for a forgotten password that are valid at the same time. Until one expires or is used,
    no further email is sent."""
    tries_per_code: int = Field(default=5, ge=1, le=100)
    """Attempts to enter the code in an email. After that the code is void."""
    deletion_grace_seconds: int = Field(default=14 * 86400, ge=60, le=400 * 86400)
    """Time between the request to delete an account and its erasure. Until then the account can be
    restored."""


class RateLimits(Group):
    """Rate limits"""

    limit_sign_in: Limit = limits.parse("5 per 5 minutes")
    """Failed sign-ins to one account from one browser or IP address."""
    limit_sign_in_account: Limit = limits.parse("10 per 5 minutes")
    """Failed sign-ins to one account from all browsers and addresses that have not signed in to it
    before."""
    limit_sign_in_address: Limit = limits.parse("100 per 5 minutes")
    """Failed sign-ins from one IP address (for IPv6, one /64 network) to any accounts. Codes,
    passkeys, and re-entered passwords in unknown browsers are each limited likewise."""
    limit_confirmation: Limit = limits.parse("5 per 5 minutes")
    """Wrong passwords in one session, when it re-enters or changes the password."""
    limit_factor: Limit = limits.parse("5 per 5 minutes")
    """Wrong codes in the second step of signing in to one account, or in one known browser."""
    limit_registration: Limit = limits.parse("1000 per hour")
    """Attempts to create an account from one IP address."""
    limit_password_feedback: Limit = limits.parse("6000 per hour")
    """Requests from one IP address to rate a new password while the user types it."""
    limit_recovery: Limit = limits.parse("60 per hour")
    """Password reset emails requested from one IP address and, counted separately, new passwords
    set with a reset link."""
    limit_mail: MailLimit = limits.parse("30 per hour")
    """Emails of all kinds to one mailbox; an address with `+tag` counts as the same mailbox. One
    sixth each is reserved for password resets, verification, invitations and changes of address. At
    least 6."""
    limit_letter: Limit = limits.parse("5 per hour")
    """Emails for verifying an address that one account can request."""
    limit_letter_address: Limit = limits.parse("20 per day")
    """Emails for verifying one address, requested by all accounts together."""
    limit_invitation: Limit = limits.parse("5 per day")
    """Invitation emails to one address."""
    limit_post: Limit = limits.parse("30 per hour")
    """Posts that one user creates or edits."""
    limit_comment: Limit = limits.parse("60 per hour")
    """Comments of one user."""
    limit_factor_change: Limit = limits.parse("60 per hour")
    """Changes of one user's second factors and recovery codes."""
    limit_export: Limit = limits.parse("1 per 5 minutes")
    """Exports of one user's data."""
    limit_handshake_user: Limit = limits.parse("600 per minute")
    """Sockets that one user opens."""
    limit_handshake_address: Limit = limits.parse("60000 per minute")
    """Sockets that are opened from one IP address."""


class LivePages(Group):
    """Live pages"""

    live_ping_seconds: PingInterval = 20
    """Interval of the pings on a socket. A socket that is silent for two intervals is closed. A
    page that hears nothing for 30 seconds says so."""
    live_hide_seconds: SilentTime = 0
    """Time without a message from the server after which a page hides its content, until it hears
    from the server again. What was typed is kept. With 0 it only says that it hears nothing."""
    live_sweep_seconds: Pause = 30
    """Interval at which a worker checks the session of every open socket, in addition to following
    the change stream."""
    live_mailbox: Count = 32
    """Messages that may wait for one slow socket. If there are more, the socket is closed, and the
    page reconnects and gets what it missed."""
    sockets_per_session: Count = 20
    """Open sockets of one session in a worker. A further handshake is refused with 503."""
    sockets_per_user: Count = 100
    """Open sockets of one user in a worker, likewise."""
    sockets_per_address: Count = 5_000
    """Open sockets from one IP address in a worker, likewise."""
    sockets_per_worker: Count = 10_000
    """Open sockets in a worker, likewise."""
    handshakes_at_once: Count = 200
    """Handshakes that a worker handles at the same time. Further ones are refused with 503, and the
    pages try again."""
    principals_per_worker: int = Field(default=20_000, ge=0, le=UNBOUNDED)
    """Sessions that a worker keeps in its cache. 0 turns the cache off."""


class Launcher(Group):
    """Set by the launcher

    `quartapp serve` sets these for each of its workers. Do not set them yourself.
    """

    worker: str = Field(default="0", validation_alias="QUARTAPP_WORKER")
    """Number of the worker, for its log lines."""
    worker_id: str | None = Field(default=None, validation_alias="QUARTAPP_WORKER_ID")
    """Id under which the worker stores its heartbeat in the database."""
    neighbours: Path | None = Field(default=None, validation_alias="QUARTAPP_NEIGHBOURS")
    """Folder of the Unix sockets through which the workers of one host notify each other."""


# In the order of docs/settings.md.
GROUPS: tuple[type[Group], ...] = (
    Deployment,
    Database,
    Keys,
    Email,
    Passwords,
    Sessions,
    Accounts,
    RateLimits,
    LivePages,
    Launcher,
)
