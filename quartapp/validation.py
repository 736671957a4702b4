"""Usernames, role names and email addresses: what is valid, and when two spellings are one.

Forms, commands and imports call the same `check_...` functions. They return the form that is
stored and shown, and raise Invalid with a sentence for the person who typed it.

The `canonical_...` functions return the form by which accounts are found, counted and kept apart:
two spellings of one username or one mailbox have one canonical form. They accept any text and
never raise. Each looks at 254 characters at most, so that their cost is bounded.
"""

import re
import unicodedata

import email_validator
import idna

# Of users and of roles. No @, so that a login is one of a username and an address.
NAME = re.compile(r"\A[A-Za-z0-9](?:[A-Za-z0-9._-]{0,30}[A-Za-z0-9])?\Z")
NAME_RULE = (
    "Use 1 to 32 letters, digits, dots, dashes or underscores, with a letter or digit at both ends."
)
# The page that creates roles has this name's place.
RESERVED_ROLES = frozenset({"new"})

# RFC 5321, 4.5.3.1.3, without the angle brackets.
LONGEST_EMAIL = 254
LONGEST_DESCRIPTION = 200
_LONGEST_DOMAIN = 253
_LONGEST_LABEL = 63
_SURROGATE = re.compile("[\ud800-\udfff]")
# Marks that turn the direction of text, with which a line can be made to look like another.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# Reserved, but in use: companies have mail servers below .local, and .test is made for trying.
for _name in ("local", "test"):
    email_validator.SPECIAL_USE_DOMAIN_NAMES.remove(_name)


class Invalid(ValueError):
    """A name or an address that cannot be used. The text says why, to the person who typed it."""


def check_username(text: str) -> str:
    """Return the username. Raises Invalid."""
    if not NAME.match(text):
        raise Invalid(NAME_RULE)
    return text


def check_role_name(text: str) -> str:
    """Return the name of a role. Raises Invalid."""
    if not NAME.match(text):
        raise Invalid(NAME_RULE)
    if canonical_username(text) in RESERVED_ROLES:
        raise Invalid("A role cannot have this name.")
    return text


def check_email(text: str, *, ascii_local_part: bool = True) -> str:
    """Return the address as it is stored and shown: the domain in Unicode and in lower case.

    The syntax is that of RFC 5321, without quoted local parts and without IP addresses. Only mail
    servers with SMTPUTF8 accept a local part that is not ASCII, so that no account is created with
    one; accounts that have one already keep it.

    Raises Invalid.
    """
    if len(text) > LONGEST_EMAIL:
        raise Invalid(f"An email address has at most {LONGEST_EMAIL} characters.")
    # RFC 2047: a program that reads the header would show, and might use, another address.
    if "=?" in text:
        raise Invalid("An email address cannot contain =?, which has a meaning of its own in mail.")
    if any(len(label) > _LONGEST_LABEL for label in text.rpartition("@")[2].split(".")):
        raise Invalid(f"Between two dots, a domain has at most {_LONGEST_LABEL} characters.")
    try:
        found = email_validator.validate_email(
            text, check_deliverability=False, allow_smtputf8=not ascii_local_part, strict=True
        )
    except email_validator.EmailNotValidError as error:
        raise Invalid(str(error)) from None
    return found.normalized


def check_known_email(text: str) -> str:
    """The same for an address that an account may have already. Raises Invalid."""
    return check_email(text, ascii_local_part=False)


def check_description(text: str) -> str:
    """Return the description of a role, without spaces around it. Raises Invalid."""
    text = text.strip()
    if len(text) > LONGEST_DESCRIPTION:
        raise Invalid(f"A description has at most {LONGEST_DESCRIPTION} characters.")
    return check_direction(check_printable(text))


def check_printable(text: str) -> str:
    """Return the text. Raises Invalid for control characters, except line breaks and tabs, and for
    halves of characters (surrogates)."""
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\r\n\t" for c in text):
        raise Invalid("This has a character that cannot be used.")
    return text


def check_direction(text: str) -> str:
    """Return the text. Raises Invalid for marks that turn the direction of text."""
    if not _BIDI.isdisjoint(text):
        raise Invalid("This has a character that cannot be used.")
    return text


def terminal_safe(text: str) -> str:
    """Return the text with escapes for what a terminal obeys or does not show: control characters,
    line breaks, invisible marks, and bytes that were no text (surrogates)."""
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in text
    )


def mail_address(email: str) -> str:
    """Return the address as mail servers know it: the domain in ASCII (IDNA). Raises Invalid."""
    local, _, domain = check_known_email(email).rpartition("@")
    return f"{local}@{_ascii_domain(domain)}"


def canonical_username(text: str) -> str:
    """Return the form of a username, or of a role's name, in which case makes no difference."""
    return _fold(text) if _is_possible(text) else ""


def canonical_email(text: str) -> str:
    """Return the form of an address that all spellings of one mailbox share.

    The local part in lower case; the domain in lower case and in ASCII (UTS 46, IDNA), which is
    how browsers send `<input type=email>`. A text that can be no address has some form, too, or
    the empty one.
    """
    if not _is_possible(text):
        return ""
    local, at, domain = text.rpartition("@")
    canonical = f"{_fold(local)}{at}{_ascii_domain(domain)}"
    return canonical if len(canonical) <= LONGEST_EMAIL else ""


def mailbox_of(text: str) -> str:
    """Return the mailbox that an address leads to, for counting: the canonical form without `+tag`.

    Mail servers deliver `ada+news@example.org` to `ada@example.org`.
    """
    local, at, domain = canonical_email(text).rpartition("@")
    return f"{local.partition('+')[0] or local}{at}{domain}"


def canonical_login(text: str) -> str:
    """Return the canonical form of what is typed to sign in: a username, or an address."""
    return canonical_email(text) if "@" in text else canonical_username(text)


def spellings(email: str) -> list[str]:
    """Return how one address may be stored, apart from case: with its domain in Unicode, in ASCII
    and as it was typed. For documents that have no canonical form beside the address."""
    local, at, domain = canonical_email(email).rpartition("@")
    if not at:
        return [email]
    return list(dict.fromkeys((f"{local}@{_unicode_domain(domain)}", f"{local}@{domain}", email)))


def _is_possible(text: str) -> bool:
    """Whether a database could hold it as a name: half a character (a surrogate) is no text."""
    return len(text) <= LONGEST_EMAIL and not _SURROGATE.search(text)


def _fold(text: str) -> str:
    # Lower case only: str.casefold would make ß and ss one, which are two mailboxes.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


def _ascii_domain(domain: str) -> str:
    """Encodes what UTS 46 can map, whether or not IDNA allows it; `check_email` decides that."""
    try:
        mapped = idna.uts46_remap(domain, std3_rules=False)
    except idna.IDNAError:
        return _fold(domain)
    # UTS 46 maps one character to as many as eighteen, and Punycode takes quadratic time.
    if len(mapped) > _LONGEST_DOMAIN:
        return mapped
    return ".".join(map(_ascii_label, mapped.split(".")))


def _ascii_label(label: str) -> str:
    if label.isascii() or len(label) > _LONGEST_LABEL:
        return label
    return f"xn--{label.encode('punycode').decode()}"


def _unicode_domain(domain: str) -> str:
    if "xn--" not in domain:
        return domain
    try:
        return idna.decode(domain)
    except idna.IDNAError:
        return domain


def plain_code(text: str) -> str:
    """Return a typed code without what does not count: spaces, dashes and invisible characters.

    Decimal digits of any script become ASCII digits, and full-width letters ASCII letters, as an
    input method for another script may have typed them.
    """
    kept = (
        c
        for c in unicodedata.normalize("NFKC", text)
        if not c.isspace() and c != "\N{MINUS SIGN}" and unicodedata.category(c) not in ("Pd", "Cf")
    )
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in kept)
