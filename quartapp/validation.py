"""Validation and canonical forms of usernames, role names and email addresses.

Forms, commands and imports call the same `check_...` functions. They return the text to store and
show, and raise Invalid with a sentence for the user.

The `canonical_...` functions return the text by which accounts are looked up, compared and
counted: all spellings of one username or mailbox have the same canonical form. They accept any
text, return an empty string for texts longer than 254 characters, and never raise.
"""

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from functools import cache
from types import ModuleType

import idna

from quartapp.i18n import lazy_gettext as _
from quartapp.i18n import library_text

# Usernames and role names. Without @, so that a login is either a username or an address.
NAME = re.compile(r"\A[A-Za-z0-9](?:[A-Za-z0-9._-]{0,30}[A-Za-z0-9])?\Z")
NAME_RULE = _(
    "Use 1 to 32 letters, digits, dots, dashes or underscores, with a letter or digit at both ends."
)
UNUSABLE = _("This contains a character that cannot be used.")
# The library for addresses gives precise reasons, but only in English.
NO_ADDRESS = _("This is no email address. Enter one such as name@example.org.")
# /admin/roles/new is the page that creates roles.
RESERVED_ROLES = frozenset({"new"})
# /admin/users/new and /admin/users/bulk are pages of their own.
RESERVED_USERNAMES = frozenset({"new", "bulk"})

# RFC 5321, section 4.5.3.1.3, without the angle brackets.
LONGEST_EMAIL = 254
LONGEST_DESCRIPTION = 200
LONGEST_DISPLAY_NAME = 50
_LONGEST_DOMAIN = 253
_LONGEST_LABEL = 63
_SURROGATE = re.compile("[\ud800-\udfff]")
# Zero-width non-joiner and joiner: Persian and Indian scripts and emoji need them.
_JOINERS = frozenset("\u200c\u200d")
# Marks that change the direction of text and can make a line look like a different one.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# Reserved but in use: some companies have mail servers below .local, and .test is for testing.
_ACCEPTED_SPECIAL_USE_DOMAINS = ("local", "test")


class Invalid(ValueError):
    """A name or an address that cannot be used. The text tells the user why."""


def check_username(text: str) -> str:
    """Return the username unchanged. Raises Invalid unless NAME matches it, and if it is reserved
    (RESERVED_USERNAMES)."""
    if not NAME.match(text):
        raise Invalid(NAME_RULE)
    if canonical_username(text) in RESERVED_USERNAMES:
        raise Invalid(_("This name is reserved. Choose another one."))
    return text


def check_role_name(text: str) -> str:
    """Return the role name unchanged.

    Raises Invalid unless NAME matches it, and for the names in RESERVED_ROLES.
    """
    if not NAME.match(text):
        raise Invalid(NAME_RULE)
    if canonical_username(text) in RESERVED_ROLES:
        raise Invalid(_("This name is reserved. Choose another one."))
    return text


def check_email(text: str, *, ascii_local_part: bool = True) -> str:
    """Return the address to store and show, with the domain in Unicode and in lower case.

    Raises Invalid unless the address has the syntax of RFC 5321, without quoted local parts and
    IP addresses. By default it also raises Invalid for a local part that is not ASCII, because
    only mail servers with SMTPUTF8 accept one. Does not ask the DNS.
    """
    if len(text) > LONGEST_EMAIL:
        raise Invalid(_("An email address has at most %(num)s characters.", num=LONGEST_EMAIL))
    # RFC 2047: a mail program would decode this and could show or use a different address.
    if "=?" in text:
        raise Invalid(_("An email address cannot contain =?."))
    if any(len(label) > _LONGEST_LABEL for label in text.rpartition("@")[2].split(".")):
        raise Invalid(
            _("Each part of a domain has at most %(num)s characters.", num=_LONGEST_LABEL)
        )
    syntax = _email_validator()
    try:
        found = syntax.validate_email(
            text, check_deliverability=False, allow_smtputf8=not ascii_local_part, strict=True
        )
    except syntax.EmailNotValidError as error:
        raise Invalid(library_text(str(error), NO_ADDRESS)) from None
    return found.normalized


@cache
def _email_validator() -> ModuleType:
    """Import email_validator, which takes 15 ms, and let it accept domains that are in use."""
    import email_validator

    for name in _ACCEPTED_SPECIAL_USE_DOMAINS:
        email_validator.SPECIAL_USE_DOMAIN_NAMES.remove(name)
    return email_validator


def preload() -> None:
    """Import what `check_email` imports when it is first called."""
    _email_validator()


def check_known_email(text: str) -> str:
    """Do the same as `check_email`, but accept local parts that are not ASCII.

    For addresses of existing accounts, which may have one. Raises Invalid.
    """
    return check_email(text, ascii_local_part=False)


def check_description(text: str) -> str:
    """Return the description of a role without surrounding white space.

    Raises Invalid if it is longer than 200 characters or if check_printable or check_direction
    does.
    """
    text = text.strip()
    if len(text) > LONGEST_DESCRIPTION:
        raise Invalid(_("A description has at most %(num)s characters.", num=LONGEST_DESCRIPTION))
    return check_direction(check_printable(text))


def check_display_name(text: str) -> str:
    """Return the name in NFC, with each run of white space as one space, and none around it.

    An empty name is accepted. Raises Invalid if it is longer than 50 characters, has control
    characters, marks that change the direction of text or other invisible characters, or nothing
    visible. The two joiners that some scripts need are accepted.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if len(text) > LONGEST_DISPLAY_NAME:
        raise Invalid(_("A display name has at most %(num)s characters.", num=LONGEST_DISPLAY_NAME))
    kinds = {unicodedata.category(c) for c in text if c not in _JOINERS}
    if kinds & {"Cc", "Cf", "Cn", "Co", "Cs"}:
        raise Invalid(UNUSABLE)
    if text and not any(kind[0] in "LNPS" for kind in kinds):
        raise Invalid(_("Enter a name that can be seen, or leave this empty."))
    return text


def check_printable(text: str) -> str:
    """Return the text unchanged.

    Raises Invalid for surrogates and for control characters other than line breaks and tabs.
    """
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\r\n\t" for c in text):
        raise Invalid(UNUSABLE)
    return text


def check_direction(text: str) -> str:
    """Return the text unchanged. Raises Invalid for marks that change the direction of text."""
    if not _BIDI.isdisjoint(text):
        raise Invalid(UNUSABLE)
    return text


def terminal_safe(text: str) -> str:
    """Return the text with control characters, line breaks, invisible marks and surrogates escaped
    as in a Python string, so that it cannot control the terminal."""
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in text
    )


def mail_address(email: str) -> str:
    """Return the address for mail servers, with the domain in ASCII (IDNA). Raises Invalid."""
    local, _, domain = check_known_email(email).rpartition("@")
    return f"{local}@{_ascii_domain(domain)}"


def canonical_username(text: str) -> str:
    """Return the canonical form of a username or role name, which is in lower case."""
    return _fold(text) if _is_possible(text) else ""


def canonical_email(text: str) -> str:
    """Return the canonical form of an address: the local part in lower case, the domain in lower
    case and in ASCII (UTS 46, IDNA), as browsers send the value of `<input type=email>`.

    Returns some text for a text that is not an address; an empty one if it, or its canonical form,
    is longer than 254 characters or has a surrogate.
    """
    if not _is_possible(text):
        return ""
    local, at, domain = text.rpartition("@")
    canonical = f"{_fold(local)}{at}{_ascii_domain(domain)}"
    return canonical if len(canonical) <= LONGEST_EMAIL else ""


def mailbox_of(text: str) -> str:
    """Return the canonical form of an address without its `+tag`, for limits per mailbox.

    Many mail servers deliver `ada+news@example.org` to `ada@example.org`.
    """
    local, at, domain = canonical_email(text).rpartition("@")
    return f"{local.partition('+')[0] or local}{at}{domain}"


def canonical_login(text: str) -> str:
    """Return the canonical form of a login, which is an address if it contains @."""
    return canonical_email(text) if "@" in text else canonical_username(text)


def spellings(email: str) -> list[str]:
    """Return the spellings under which an address may be stored, apart from case.

    The domain is in Unicode, in ASCII and as given. For documents that lack the canonical field.
    """
    local, at, domain = canonical_email(email).rpartition("@")
    if not at:
        return [email]
    return list(dict.fromkeys((f"{local}@{_unicode_domain(domain)}", f"{local}@{domain}", email)))


def _is_possible(text: str) -> bool:
    """Whether the text is short enough and can be stored. Surrogates cannot be stored."""
    return len(text) <= LONGEST_EMAIL and not _SURROGATE.search(text)


def _fold(text: str) -> str:
    """Return the text in lower case and NFC."""
    # Not str.casefold, which maps ß to ss: those are two different mailboxes.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


def _ascii_domain(domain: str) -> str:
    """Return the domain in ASCII, also if IDNA forbids it, which `check_email` would reject. A
    domain that cannot be mapped is returned in lower case, one that is too long as it was mapped.
    """
    try:
        mapped = idna.uts46_remap(domain, std3_rules=False)
    except idna.IDNAError:
        return _fold(domain)
    # UTS 46 can map one character to eighteen, and Punycode takes quadratic time.
    if len(mapped) > _LONGEST_DOMAIN:
        return mapped
    return ".".join(map(_ascii_label, mapped.split(".")))


def _ascii_label(label: str) -> str:
    """Return the label in Punycode; unchanged if it is ASCII or too long."""
    if label.isascii() or len(label) > _LONGEST_LABEL:
        return label
    return f"xn--{label.encode('punycode').decode()}"


def _unicode_domain(domain: str) -> str:
    """Return the domain with labels in Punycode as Unicode. Unchanged if there are none or one is
    not valid."""
    if "xn--" not in domain:
        return domain
    try:
        return idna.decode(domain)
    except idna.IDNAError:
        return domain


def parse_number(text: str) -> int | None:
    """Return the number in decimal digits, at most 15 of them; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def plain_code(text: str) -> str:
    """Return a code that was typed, without spaces, dashes and invisible characters.

    Converts decimal digits of other scripts to ASCII digits and full-width letters to ASCII
    letters, because input methods for other scripts produce them.
    """
    kept = (
        c
        for c in unicodedata.normalize("NFKC", text)
        if not c.isspace() and c != "\N{MINUS SIGN}" and unicodedata.category(c) not in ("Pd", "Cf")
    )
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in kept)


# How long a grant can last that does not last forever.
GRANT_END_RULE = _("Enter a duration such as 2h or 7d, or a time such as 2030-12-31 14:00.")
GRANT_AT_LEAST, GRANT_AT_MOST = timedelta(minutes=1), timedelta(days=3660)
_DURATION = re.compile(r"(?:(\d{1,4})w)?(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,8})m)?", re.ASCII)


def check_grant_end(text: str, now: datetime) -> datetime:
    """Return the time until which a role is granted, in UTC.

    `text` is a duration from now, such as `2h`, `1d12h` or `30m` (weeks, days, hours, minutes), or
    a time in ISO 8601; one without a zone is in UTC. Raises Invalid for another text, and for a
    time that is less than GRANT_AT_LEAST or more than GRANT_AT_MOST from now.
    """
    found = _DURATION.fullmatch("".join(text.split()).lower())
    try:
        if found and found.group():
            weeks, days, hours, minutes = (int(number or 0) for number in found.groups())
            lasts = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes)
            until = now + lasts
        else:
            until = datetime.fromisoformat(text.strip())
            until = until.astimezone(UTC) if until.tzinfo else until.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Invalid(GRANT_END_RULE) from None
    if not GRANT_AT_LEAST <= until - now <= GRANT_AT_MOST:
        raise Invalid(_("Enter a time between one minute and ten years from now."))
    return until
