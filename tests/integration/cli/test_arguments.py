"""Validation of arguments, and escaping of data that is printed."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from quartapp import validation
from tests.conftest import PASSWORD
from tests.integration.cli.conftest import Terminal, complaint
from tests.people import command

BAD = b"a\xff\x9b\x1b[2J"
# As Python decodes it.
DECODED = BAD.decode(errors="surrogateescape")
REFUSED = "argument {} is not valid UTF-8: a\\udcff\\udc9b\\x1b[2J"


async def test_shell_argument_that_is_not_utf8_is_rejected_in_one_line() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quartapp", b"user", b"show", BAD),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode() == f"quartapp: {REFUSED.format(3)}\n"


@pytest.mark.parametrize(
    "words",
    [
        ("user", "create", DECODED, "a@example.org"),
        ("user", "import", DECODED),
        ("role", "create", "editor", "--description", DECODED),
        ("user", "list", "--data", DECODED),
        ("serve", "--host", DECODED),
        ("user", DECODED),
        (DECODED,),
    ],
    ids=lambda words: " ".join(words[:-1]),
)
async def test_argument_that_is_not_utf8_is_rejected_in_one_line(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    ran = await command(*words, data=tmp_path)
    assert complaint(ran) == REFUSED.format(words.index(DECODED) + 1)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("user", "create", "\x1b[2J", "a@b.org"), "\\x1b[2J: Use 1 to 32 letters"),
        (("user", "create", "a\u202eb", "a@b.org"), "a\\u202eb: Use 1 to 32 letters"),
        (("user", "create", "a" * 33, "a@b.org"), "Use 1 to 32 letters"),
        (("user", "create", "ada", "a@b..org"), "a@b..org: An email address cannot have two"),
        (("user", "create", "ada", "=?utf-8?q?v?=@b.org"), "cannot contain =?"),
        (("user", "create", "ada", "\x9b@b.org"), "\\x9b@b.org: "),
        (("user", "invite", "a@b@c.org"), "a@b@c.org: The part after the @-sign"),
        (("user", "show", "a\nb"), "there is no user a\\nb"),
        (("user", "grant", "a\u202e", "member"), "there is no user a\\u202e"),
        (("user", "\x1b]0;x\x07"), "\\x1b]0;x\\x07"),
        (("role", "create", "new"), "new: This name is reserved."),
        (("role", "create", "New"), "New: This name is reserved."),
        (("role", "create", "x" * 33), "Use 1 to 32 letters"),
        (("role", "create", "r", "--description", "x" * 201), "at most 200 characters"),
        (("role", "create", "r", "--description", "a\x1bb"), "a character that cannot be used"),
        (("role", "create", "r", "--description", "a\u202eb"), "a character that cannot be used"),
        (("role", "create", "r", "--permission", "\x1b[1m"), "\\x1b[1m"),
        (("user", "import", "/nowhere/\x1b[2J"), "\\x1b[2J"),
    ],
)
async def test_commands_validate_arguments_and_escape_them_in_messages(
    terminal: Terminal, words: tuple[str, ...], reason: str
) -> None:
    said = await terminal.refuses(*words, stdin=f"{PASSWORD}\n".encode())
    assert reason in said
    assert validation.terminal_safe(said) == said


@pytest.mark.parametrize(
    "words", [("--nonsense",), ("user", "--nonsense"), ("serve", "--nonsense")]
)
async def test_an_unknown_option_is_rejected_in_one_line(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    assert "No such option '--nonsense'." in complaint(await command(*words, data=tmp_path))


def test_terminal_safe_escapes_control_characters() -> None:
    for c in map(chr, (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x202E, 0x2028, 0xDCFF)):
        assert validation.terminal_safe(f"a{c}b").isprintable(), hex(ord(c))
    for text in ("Ada Lovelace", "bücher", "本", "👩", "\\"):
        assert validation.terminal_safe(text) == text
