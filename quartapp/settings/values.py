"""The kinds of values that settings take: types whose validators explain what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated
from urllib.parse import urlsplit

import limits
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

LONGEST_SECONDS = 10 * 366 * 86400
# The largest value of counts that need no bound of their own.
UNBOUNDED = 10**9
# The mail budget of a mailbox (LIMIT_MAIL) is divided into this many shares.
MAIL_SHARES = 6
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
DEFAULT_PORTS = {"http": 80, "https": 443}
LONGEST_SITE_NAME = 60
HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")


class StartError(Exception):
    """The application cannot start. The message is one line for the person who starts it."""


@dataclass(frozen=True, slots=True)
class Doc:
    """What docs/settings.md says about a value, where its type does not say it."""

    takes: str = ""
    default: str = ""


def _origin(text: str) -> str:
    """Return the origin as browsers write it: in lower case, without the scheme's default port and
    a final slash. Raises ValueError, which says what to write, for anything but an origin."""
    example = "write an origin, like https://people.example.org"
    try:
        parts = urlsplit(text.rstrip("/").lower())
        port = parts.port
    except ValueError:
        raise ValueError(example) from None
    host = parts.hostname or ""
    if parts.scheme not in DEFAULT_PORTS or port == 0 or not is_host(host):
        raise ValueError(example)
    origin = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
    with_port = f"{origin}:{port or DEFAULT_PORTS[parts.scheme]}"
    if text.rstrip("/").lower() not in (origin, with_port):
        raise ValueError("write the origin alone, without a path or a user")
    return origin if port in (None, DEFAULT_PORTS[parts.scheme]) else with_port


def is_host(text: str) -> bool:
    """Return whether the text is an IP address without brackets and zone, or an ASCII host name of
    at most 253 characters."""
    try:
        ip_address(text)
    except ValueError:
        return bool(HOST.fullmatch(text.lower())) and ".." not in text and len(text) <= 253
    return "%" not in text


def _range_service(text: object) -> object:
    """Return None for "off", a blank text and anything but a text; else the https URL of a service.

    A loopback host may use http. Raises ValueError for other URLs, and for one with a query.
    """
    if not isinstance(text, str) or text.strip().lower() in ("", "off"):
        return None
    parts = urlsplit(text)
    plain = text.isascii() and text.isprintable() and " " not in text
    secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if not plain or not secure or not parts.hostname or parts.query or parts.fragment:
        raise ValueError('write "off", or an address like https://api.pwnedpasswords.com/range')
    return text


def _limit(value: object) -> object:
    """Return the rate of a text such as "10 per 5 minutes". Other types are returned as they are.

    Raises ValueError if it is no rate, has a zero, or has a period longer than ten years.
    """
    if not isinstance(value, str):
        return value
    try:
        limit = limits.parse(value)
        period = limit.get_expiry()
    except (ValueError, OverflowError):
        raise ValueError('write it like "10 per 5 minutes"') from None
    if limit.amount < 1 or limit.multiples < 1:
        raise ValueError("write an amount and a period of at least 1")
    if period > LONGEST_SECONDS:
        raise ValueError("write a period of at most ten years")
    return limit


def _at_least_a_share_each(limit: limits.RateLimitItem) -> limits.RateLimitItem:
    """Return the limit. Raises ValueError for an amount below MAIL_SHARES."""
    if limit.amount < MAIL_SHARES:
        raise ValueError(f"at least {MAIL_SHARES} emails, so that each kind has room")
    return limit


def json_list(example: str) -> Callable[[object], object]:
    """Return a validator that parses a text as a JSON list of strings, none of them blank, and
    returns the list.

    It raises ValueError with `example` for other texts, and returns other types as they are.
    """

    def parse(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(e, str) and e.strip() for e in found):
            raise ValueError(f"write a JSON list of texts, like {example}")
        return found

    return parse


def _never_or_a_minute(seconds: int) -> int:
    """Return the number. Raises ValueError for 1 to 59: pages hear a ping every 25 seconds, or more
    often."""
    if 0 < seconds < 60:
        raise ValueError("write 0, or at least 60 seconds")
    return seconds


def _network(text: object) -> object:
    """Return the network of a text; an address is a network of one. Raises ValueError for a name,
    and for a network whose host bits are not zero. Other types are returned as they are."""
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


def _host_or_blank(text: str) -> str:
    """Return the text. Raises ValueError unless it is empty or `is_host`."""
    if text and not is_host(text):
        raise ValueError("write the name of a host alone, like smtp.example.org")
    return text


def _one_line(text: str) -> str:
    """Return the text without surrounding blanks. Raises ValueError if it is longer than 200
    characters or not printable, as with a line break."""
    if not text.isprintable() or len(text) > 200:
        raise ValueError("write an email address, a link or a short text, on one line")
    return text.strip()


def _site_name(text: str) -> str:
    """Return the name without surrounding blanks. Raises ValueError if it is empty, longer than
    LONGEST_SITE_NAME, not printable, or contains "=?", which email programs would decode."""
    name = text.strip()
    # Email programs would decode what looks like an encoded word.
    if not name.isprintable() or not 0 < len(name) <= LONGEST_SITE_NAME or "=?" in name:
        raise ValueError(f"write a name of 1 to {LONGEST_SITE_NAME} characters, on one line")
    return name


def matching(pattern: str, rule: str) -> AfterValidator:
    """Return a validator that accepts None and texts that match the whole `pattern`. It raises
    ValueError with the text `rule` for others."""

    def check(text: str | None) -> str | None:
        if text is not None and not re.fullmatch(pattern, text):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


Limit = Annotated[
    limits.RateLimitItem, BeforeValidator(_limit), PlainSerializer(repr, return_type=str)
]
MailLimit = Annotated[Limit, AfterValidator(_at_least_a_share_each)]
Seconds = Annotated[int, Field(ge=60, le=LONGEST_SECONDS)]
Count = Annotated[int, Field(ge=1, le=UNBOUNDED)]
Pause = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
# Pages say that they have heard nothing for 30 seconds.
PingInterval = Annotated[float, Field(gt=0, le=25, allow_inf_nan=False)]
SilentTime = Annotated[
    int,
    Field(ge=0, le=86400),
    AfterValidator(_never_or_a_minute),
    Doc(takes="0, or 60 to 86400 seconds", default="`0` (never)"),
]
Origin = Annotated[
    str, AfterValidator(_origin), Doc(takes="an origin, such as `https://people.example.org`")
]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
Host = Annotated[str, AfterValidator(_host_or_blank), Doc(takes="a host name or IP address")]
OneLine = Annotated[
    str, AfterValidator(_one_line), Doc(takes="text on one line, at most 200 characters")
]
SiteName = Annotated[
    str, AfterValidator(_site_name), Doc(takes=f"1 to {LONGEST_SITE_NAME} printable characters")
]
RangeService = Annotated[
    str | None,
    BeforeValidator(_range_service),
    Doc(takes="`off` or an `https` URL", default="`off`"),
]
