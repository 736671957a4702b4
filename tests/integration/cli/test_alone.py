"""Commands without a running server: users, roles, sample data and settings."""

import asyncio
import csv
import json
import re
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from quartapp import clock, servers
from quartapp.cli.base import CommandError
from quartapp.cli.settings import find_data_folder
from quartapp.db import embedded
from quartapp.policy import Permission
from tests.conftest import PASSWORD
from tests.integration.cli.conftest import Terminal, complaint
from tests.people import command

LINE = f"{PASSWORD}\n".encode()


async def create(terminal: Terminal, name: str, *roles: str) -> str:
    options = [word for role in roles for word in ("--role", role)]
    return await terminal.does("user", "create", name, f"{name}@example.org", *options, stdin=LINE)


def row(table: str, name: str) -> list[str]:
    """Return the cells of the row that begins with the name; an empty list if there is none."""
    rows = (re.split(r"  +", line) for line in table.splitlines())
    return next((cells for cells in rows if cells[0] == name), [])


async def test_command_without_server_starts_database_and_keeps_changes(
    tmp_path: Path,
) -> None:
    data = tmp_path / "fresh"
    made = await command(*("user", "create", "ada", "ada@example.org"), data=data, stdin=LINE)
    assert made.status == 0, made
    assert embedded.DataFolder(data).mongod_pid() is None
    listed = await command("user", "list", data=data)
    assert row(listed.out, "ada") == ["ada", "ada@example.org", "member"]
    assert embedded.DataFolder(data).mongod_pid() is None


async def test_a_command_counts_the_accounts_that_it_creates(terminal: Terminal) -> None:
    async def counted() -> int:
        async with (
            embedded.running(terminal.data) as mongod,
            AsyncMongoClient[Any](mongod.uri) as client,
        ):
            rows = await client["quartapp"]["hourly_counts"].find({}).to_list(None)
        return sum(sum(row["counts"]["accounts"].values()) for row in rows)

    before = await counted()
    await create(terminal, "counted")
    assert await counted() == before + 1


async def test_user_commands_create_show_and_change_an_account(terminal: Terminal) -> None:
    out = await create(terminal, "ada", "moderator", "moderator")
    assert out == "Created ada with the roles member, moderator.\n"
    shown = await terminal.does("user", "show", "ADA")
    for line in ("username  ada", "email     ada@example.org", "state     active", "sessions  0"):
        assert line in shown
    assert "roles     member, moderator" in shown
    for words, said in (
        (("revoke", "ada", "Moderator"), "ada no longer has the role moderator."),
        (("revoke", "ada", "moderator"), "ada did not have the role moderator."),
        (("grant", "ada", "admin"), "ada now has the role admin."),
        (("grant", "ada", "admin"), "ada already has the role admin."),
        (("end-sessions", "ada"), "Sessions of ada ended: 0."),
    ):
        assert await terminal.does("user", *words) == f"{said}\n"
    assert "roles     admin, member" in await terminal.does("user", "show", "ada")


@pytest.mark.parametrize("required", ["true", "false"])
async def test_created_account_is_verified_unless_option_says_otherwise(
    terminal: Terminal, required: str
) -> None:
    async def shown(name: str) -> str:
        return await terminal.does("user", "show", name)

    env = {"REQUIRE_VERIFIED_EMAIL": required}
    name = f"eva-{required}"
    words = ("user", "create", name, f"{name}@example.org", "--unverified")
    refused = await terminal.run(*words, "--role", "moderator", stdin=LINE, **env)
    assert refused.status == (1 if required == "true" else 0)
    if required == "true":
        assert "is not verified" in refused.err
        assert "once that is done" in (await terminal.run(*words, stdin=LINE, **env)).out
        assert "is not verified" in await terminal.refuses("user", "grant", name, "admin")
    assert f"{name}@example.org (unverified)" in await shown(name)
    assert "unverified" in row(await terminal.does("user", "list"), name)[-1]
    done = await terminal.does("user", "verify", name)
    assert done == f"The email address {name}@example.org of {name} is verified.\n"
    assert "was already verified" in await terminal.does("user", "verify", name)
    assert "unverified" not in await shown(name)
    await terminal.does("user", "grant", name, "admin")
    await create(terminal, f"vera-{required}")
    assert "unverified" not in await shown(f"vera-{required}")


async def test_disable_and_enable_never_lose_the_last_administrator(
    tmp_path: Path,
) -> None:
    async with embedded.running(tmp_path):
        terminal = Terminal(tmp_path)
        await create(terminal, "ada", "admin")
        assert "last active" in await terminal.refuses("user", "disable", "ada")
        assert "last active" in await terminal.refuses("user", "revoke", "ada", "admin")
        assert "last active" in await terminal.refuses("user", "delete", "ada", "--now")
        await create(terminal, "grace", "admin")
        assert await terminal.does("user", "disable", "ada") == "ada is disabled.\n"
        assert await terminal.does("user", "disable", "ada") == "ada was already disabled.\n"
        table = await terminal.does("user", "list")
        assert row(table, "ada") == ["ada", "ada@example.org", "admin, member", "disabled"]
        assert await terminal.does("user", "enable", "ada") == "ada is enabled.\n"
        assert row(await terminal.does("user", "list"), "ada")[3:] == []
        day = f"{clock.now() + timedelta(days=9):%Y-%m-%d}"
        out = await terminal.does("user", "disable", "ada", "--on", day)
        assert out == f"ada will be disabled at the end of {day} (UTC).\n"
        assert row(await terminal.does("user", "list"), "ada")[3:] == [f"expires on {day}"]
        second = await terminal.does("user", "list", "--limit", "1", "--after", "ada")
        assert [line.split()[0] for line in second.splitlines()] == ["USERNAME", "grace"]
        found = await terminal.does("user", "list", "--search", "grace@")
        assert [line.split()[0] for line in found.splitlines()] == ["USERNAME", "grace"]
        assert "other administrators expire" in await terminal.refuses(
            "user", "disable", "grace", "--on", day
        )
        assert await terminal.does("user", "enable", "ada") == "ada is enabled.\n"
        assert "state     active\n" in await terminal.does("user", "show", "ada")


async def test_a_role_is_granted_for_a_limited_time(terminal: Terminal) -> None:
    await create(terminal, "lim")
    words = "user", "grant", "lim", "moderator"
    out = await terminal.does(*words, "--until", "2031-12-31T14:00Z")
    assert out == "lim now has the role moderator until 2031-12-31 14:00 UTC.\n"
    table = row(await terminal.does("user", "list"), "lim")
    assert table[2] == "member, moderator (until 2031-12-31 14:00 UTC)"
    assert "roles     member, moderator (until" in await terminal.does("user", "show", "lim")
    out = await terminal.does(*words, "--for", "1d12h")
    end = clock.now() + timedelta(hours=36)
    assert out.startswith(f"lim has the role moderator until {end:%Y-%m-%d}")
    assert out.endswith(". Before, it ended at 2031-12-31 14:00 UTC.\n")
    kept = "lim keeps the role moderator, which no longer ends.\n"
    assert await terminal.does(*words) == kept
    assert await terminal.does(*words) == "lim already has the role moderator.\n"
    assert "(until" not in await terminal.does("user", "show", "lim")
    out = await terminal.does(*words, "--until", "2031-12-31T14:00Z")
    assert out.endswith("until 2031-12-31 14:00 UTC. Before, it had no end.\n")
    assert "either" in await terminal.refuses(*words, "--for", "2h", "--until", "2031-12-31")
    assert "soon: Enter a duration" in await terminal.refuses(*words, "--for", "soon")
    for option in ("--for", "--until"):
        assert "Enter a duration" in await terminal.refuses(*words, option, "")
    assert "between one minute" in await terminal.refuses(*words, "--until", "2020-01-01")


async def test_invitation_without_server_is_queued(terminal: Terminal) -> None:
    out = await terminal.does("user", "invite", "guest@example.org", "--role", "Moderator")
    assert out == (
        "Invited guest@example.org. The email will be sent when a server is running. Its link "
        "works for 7 days.\n"
    )
    assert "already invited" in await terminal.refuses("user", "invite", "GUEST@example.org")


async def test_role_commands_create_edit_and_delete_a_role(terminal: Terminal) -> None:
    out = await terminal.does(
        *("role", "create", "editor", "--description", "Words."),
        *("--permission", "posts.moderate", "--permission", "users.read"),
    )
    assert out == "Created the role editor.\n"
    await create(terminal, "eve", "editor")
    assert row(await terminal.does("role", "list"), "editor") == [
        "editor",
        "1",
        "posts.moderate, users.read",
        "no",
    ]
    out = await terminal.does(
        *("role", "edit", "editor", "--allow", "posts.write", "--forbid", "users.read")
    )
    assert out == "The role editor allows posts.moderate, posts.write.\n"
    words = ("--name", "writer", "--description", "All words.", "--requests", "no")
    out = await terminal.does("role", "edit", "editor", *words)
    assert out == "The role writer allows posts.moderate, posts.write.\n"
    assert row(await terminal.does("role", "list"), "writer")[-1] == "no"
    await terminal.does("role", "edit", "writer", "--name", "editor", "--requests", "yes")
    assert row(await terminal.does("role", "list"), "editor")[-1] == "yes"
    assert await terminal.does("role", "delete", "editor") == (
        "Deleted the role editor. Users who had it: 1.\n"
    )
    assert row(await terminal.does("role", "list"), "editor") == []
    assert row(await terminal.does("user", "list"), "eve")[2] == "member"


MAKING = [
    (("ADA-TAKEN", "x@example.org"), LINE, "This username is taken."),
    (("x", "ada-taken@EXAMPLE.org"), LINE, "This email address is taken."),
    (("x", "x@example.org"), b"", "no password on"),
    (("x", "x@example.org"), b"\n", "no password on"),
    (("x", "x@example.org"), b"short\n", "at least 8"),
    (("x", "x@example.org"), b"x@example.org\n", "too similar to"),
    (("two words", "x@example.org"), LINE, "Use 1 to 32"),
    (("x\x1b[31m", "x@example.org"), LINE, "Use 1 to 32"),
    (("x", "no-address"), LINE, "must have an @-sign"),
    (("x", "x\x9b31m@example.org"), LINE, "U+009B"),
    (("x", "x@example.org", "--role", "no"), LINE, "there is no role no"),
    (("x",), LINE, "Missing argument 'EMAIL'"),
]
CHANGING = [
    (("user", "show", "nobody"), "there is no user nobody"),
    (("user", "grant", "nobody", "member"), "there is no user nobody"),
    (("user", "grant", "ada-taken", "no"), "there is no role no"),
    (("user", "revoke", "ada-taken", "no"), "there is no role no"),
    (("user", "end-sessions", "nobody"), "there is no user nobody"),
    (("user", "disable", "nobody"), "there is no user nobody"),
    (("user", "enable", "nobody"), "there is no user nobody"),
    (("user", "disable", "ada-taken", "--on", "2020-02-02"), "up to ten years ahead"),
    (("user", "disable", "ada-taken", "--on", "soon"), "does not match the format"),
    (("user", "invite", "no-address"), "must have an @-sign"),
    (("user", "invite", "ADA-taken@example.org"), "is taken"),
    (("user", "invite", "x@example.org", "--role", "no"), "there is no role no"),
    (("user", "vanish", "ada-taken"), "No such command 'vanish'"),
    (("user", "list", "--sideways"), "No such option"),
]
OTHERS = [
    (("role", "create", "Moderator"), "this name already exists"),
    (("role", "create", "a/b"), "Use 1 to 32"),
    (("role", "create", "x", "--permission", "everything"), "'everything'"),
    (("role", "edit", "no", "--allow", "posts.write"), "there is no role no"),
    (("role", "edit", "admin", "--forbid", "posts.write"), "cannot be changed"),
    (("role", "delete", "no"), "there is no role no"),
    (("role", "delete", "member"), "cannot be deleted"),
    (("demo",), "for an empty database"),
]


@pytest.fixture(scope="module")
async def taken(terminal: Terminal) -> None:
    await create(terminal, "ada-taken")


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize(
    "refused",
    [
        [(("user", "create", *words), stdin, said) for words, stdin, said in MAKING],
        [(words, b"", said) for words, said in CHANGING],
        [(words, b"", said) for words, said in OTHERS],
    ],
    ids=["making an account", "changing one", "the rest"],
)
@pytest.mark.timeout(240)
async def test_failing_command_prints_one_line_and_changes_nothing(
    terminal: Terminal, refused: list[tuple[tuple[str, ...], bytes, str]]
) -> None:
    before = await terminal.does("user", "list"), await terminal.does("role", "list")
    # Three at a time, because each is a process of its own.
    turn = asyncio.Semaphore(3)

    async def refusal(words: tuple[str, ...], stdin: bytes) -> str:
        async with turn:
            return await terminal.refuses(*words, stdin=stdin)

    said = await asyncio.gather(*(refusal(words, stdin) for words, stdin, _ in refused))
    wrong = {
        words: line
        for (words, _, expected), line in zip(refused, said, strict=True)
        if expected not in line
    }
    assert wrong == {}
    assert (await terminal.does("user", "list"), await terminal.does("role", "list")) == before


@pytest.mark.parametrize(
    ("errors", "said"), [("strict", "not UTF-8"), ("surrogateescape", "cannot be used")]
)
async def test_password_that_is_not_utf8_is_rejected(
    terminal: Terminal, errors: str, said: str
) -> None:
    line = await terminal.refuses(
        *("user", "create", "x", "x@example.org"),
        stdin=b"\xff\xfe long enough\n",
        PYTHONIOENCODING=f"utf-8:{errors}",
    )
    assert said in line


async def test_migrate_creates_what_is_missing_and_can_be_repeated(terminal: Terminal) -> None:
    for _ in range(2):
        assert await terminal.does("migrate") == "The database is ready.\n"
    listed = await terminal.does("role", "list")
    assert row(listed, "admin")[2] == ", ".join(sorted(Permission))


async def test_demo_fills_only_an_empty_database_and_prints_the_password(
    tmp_path: Path,
) -> None:
    async with embedded.running(tmp_path):
        terminal = Terminal(tmp_path)
        out = await terminal.does("demo")
        assert f"posts in {tmp_path}." in out
        found = re.search(r"^  grace +(\S+)   \(an administrator\)$", out, re.MULTILINE)
        assert found
        assert len(found[1]) >= 16
        table = await terminal.does("user", "list")
        assert row(table, "grace")[2] == "admin, member"
        assert row(table, "ada")[2] == "editor, member, moderator"
        assert "empty database" in await terminal.refuses("demo")
        assert await terminal.does("user", "list") == table


async def test_demo_creates_further_people(tmp_path: Path) -> None:
    async with embedded.running(tmp_path):
        terminal = Terminal(tmp_path)
        assert "Created 130 users" in await terminal.does("demo", "--people", "120")
        table = await terminal.does("user", "list")
        assert len(table.splitlines()) > 100
        assert "disabled" in table


def test_command_uses_the_data_folder_of_the_running_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tmp", "here", "one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "here")
    for name in ("QUARTAPP_DATA", "MONGODB_URI"):
        monkeypatch.delenv(name, raising=False)
    assert find_data_folder(None) is None
    with servers.registered(tmp_path / "one"):
        assert find_data_folder(None) == tmp_path / "one"
        assert str(tmp_path / "one") in capsys.readouterr().err
        assert find_data_folder(Path("two")) == Path("two")
        with servers.registered(tmp_path / "two"):
            with pytest.raises(CommandError, match="choose one with --data"):
                find_data_folder(None)
            with servers.registered(Path("data")):
                assert find_data_folder(None) is None
        for name in ("QUARTAPP_DATA", "MONGODB_URI"):
            monkeypatch.setenv(name, "named")
            assert find_data_folder(None) is None
            monkeypatch.setenv(name, " ")
        assert capsys.readouterr().err == ""
        (tmp_path / "here/data/mongodb").mkdir(parents=True)
        assert find_data_folder(None) is None
        assert str(tmp_path / "one") in capsys.readouterr().err
    # The file of a server that was killed is ignored, and so is a folder that others can write to.
    (folder := servers._registry_folder()).chmod(0o700)
    (folder / "killed").write_bytes(b"/elsewhere")
    assert servers.running() == []
    with servers.registered(tmp_path / "one"):
        folder.chmod(0o777)
        assert servers.running() == []


DEPLOYED = {
    "QUARTAPP_ENV": "production",
    "SECRET_KEY": "x" * 32,
    "BASE_URL": "https://people.example.org",
}


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"MONGODB_URI": "mongodb://127.0.0.1:9/?directConnection=true"}, "MONGODB_URI"),
        ({"MONGODB_URI": "mongo://nothing"}, "MONGODB_URI"),
        ({"MONGODB_URI": "mongodb://%zz"}, "MONGODB_URI"),
        ({"MONGODB_DB": "a/b"}, "MONGODB_DB"),
        ({"BCRYPT_COST": "3"}, "BCRYPT_COST"),
        ({"QUARTAPP_ENV": "staging"}, "QUARTAPP_ENV"),
        ({"QUARTAPP_ENV": "production", "SECRET_KEY": ""}, "SECRET_KEY"),
        ({"QUARTAPP_ENV": "production", "SECRET_KEY": "x" * 31}, "SECRET_KEY"),
        ({**DEPLOYED, "MONGODB_URI": " "}, "MONGODB_URI"),
        ({**DEPLOYED, "SMTP_HOSTT": "smtp.example.org"}, "did you mean SMTP_HOST?"),
    ],
    ids=str,
)
async def test_invalid_setting_is_named_in_one_line(
    tmp_path: Path, env: dict[str, str], named: str
) -> None:
    ran = await Terminal(tmp_path / "none").run("user", "list", stdin=b"", **env)
    assert named in complaint(ran)
    # The database was not started.
    assert not (tmp_path / "none" / "mongodb").exists()


async def test_misspelt_setting_prints_a_warning_in_development(terminal: Terminal) -> None:
    ran = await terminal.run("role", "list", SMTP_HOSTT="canary")
    assert ran.status == 0
    assert "admin" in ran.out
    assert ran.err == (
        "quartapp: warning: SMTP_HOSTT: there is no such setting, did you mean SMTP_HOST?\n"
    )


async def test_invalid_data_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below", "x" * 200):
        assert complaint(await command("user", "list", data=tmp_path / folder))


async def test_the_audit_log_is_exported_and_the_export_recorded(
    terminal: Terminal, tmp_path: Path
) -> None:
    await terminal.does("role", "create", "exported")
    lines = (await terminal.does("audit", "export", "--kind", "role.created")).splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert "An operator created the role exported" in texts
    file = tmp_path / "log.csv"
    words = ("audit", "export", "--format", "csv", "--q", "EXPORTED", "--output", str(file))
    assert (
        await terminal.does(*words, "--since", "2020-01-01", "--until", "2099-01-01T00:00Z") == ""
    )
    rows = list(csv.reader(file.read_text().splitlines()))
    assert rows[0][:3] == ["id", "at", "kind"]
    assert [row[2] for row in rows[1:]] == ["role.created"]
    assert await terminal.refuses(*words) == "--output: File exists"
    recorded = await terminal.does("audit", "export", "--kind", "audit.exported")
    assert len(recorded.splitlines()) == 3
    for option, text, message in (
        ("--person", "nobody", "there is no user nobody"),
        ("--since", "x", "--since: write a time such as 2026-03-01T14:05Z"),
    ):
        assert await terminal.refuses("audit", "export", option, text) == message
