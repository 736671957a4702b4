"""`quartapp user import`: from JSON lines and from MongoEngine, with bcrypt hashes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bcrypt
import bson
import pytest
from bson import Binary, DBRef
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient

from quartapp import clock
from tests.integration.cli.conftest import Terminal

HASH = bcrypt.hashpw(b"correct horse battery staple", bcrypt.gensalt(4)).decode()


def person(name: str, **changes: Any) -> dict[str, Any]:
    return {"username": name, "email": f"{name}@example.org", "password": HASH} | changes


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


async def test_import_lists_each_invalid_line_and_imports_the_others(
    terminal: Terminal, tmp_path: Path
) -> None:
    await terminal.does(
        "user", "create", "there", "there@example.org", stdin=b"correct horse battery staple\n"
    )
    file = tmp_path / "people.jsonl"
    file.write_text(
        lines(
            person("anna", roles=["member", "moderator"]),
            "{not json",
            person("THERE", email="new@example.org"),
            person("bert", email="There@Example.org"),
            "",
            person("carl", password="in clear!"),
            person("dora", password=HASH.replace("$04$", "$31$")),
            person("emil", roles=["emperor"]),
            person("fred", roles="member"),
            person("no spaces allowed"),
            person("gina", email="nowhere"),
            {"username": "hans"},
            ["a", "list"],
            person("ANNA", email="other@example.org"),
            person("ines", email={"$ne": None}),
            person("x" * 70_000),
            "[" * 5000,
            person("zoe", roles=[]),
            person("there", email="there@example.org", password="secret", active="yes", roles=5),
            {"username": "a b", "email": "nowhere", "roles": ["emperor"]},
        )
    )
    wanted = [
        ("line 2", "not valid JSON"),
        ("line 3", "THERE: This username is taken."),
        ("line 4", "bert: This email address is taken."),
        ("line 6", "carl: the password is not a bcrypt hash"),
        ("line 7", "dora: the password is not a bcrypt hash"),
        ("line 8", "emil: there is no role emperor"),
        ("line 9", "fred: roles must be a list of names"),
        ("line 10", "no spaces allowed"),
        ("line 11", "gina: email"),
        ("line 12", "email is missing"),
        ("line 13", "not a JSON object"),
        ("line 14", "ANNA: This username is taken."),
        ("line 15", "email is missing"),
        ("line 16", "longer than 64 KiB"),
        ("line 17", "not valid JSON"),
        (
            "line 19",
            "there: This username is taken; This email address is taken; the password is not a "
            "bcrypt hash with a cost from 4 to 14; active must be true or false; roles must be a "
            "list of names",
        ),
        ("line 20", "password is missing; there is no role emperor"),
    ]
    before = await terminal.does("user", "list")
    for words in (["--dry-run"], []):
        ran = await terminal.run("user", "import", str(file), *words)
        *named, total = ran.out.splitlines()
        assert ran.status == 1
        assert ran.err == "quartapp: 17 of 19 could not be imported; each is listed above\n"
        assert len(named) == len(wanted)
        for line, (place, why) in zip(named, wanted, strict=True):
            assert line.startswith(f"{place}: "), line
            assert why in line
        assert "in clear!" not in ran.out + ran.err
        if words:
            assert total == "Accounts that would be created: 2."
            assert await terminal.does("user", "list") == before
    assert total == "Accounts created: 2."
    shown = await terminal.does("user", "show", "anna")
    assert "member, moderator" in shown
    assert "roles     none" in await terminal.does("user", "show", "zoe")
    assert "roles     member" in await terminal.does("user", "show", "there")


async def test_no_line_stops_the_import_and_dry_run_reports_the_same(
    terminal: Terminal, tmp_path: Path
) -> None:
    good = json.dumps(person("otto"))
    huge, deep = "9" * 5000, "[" * 60_000
    rows: list[tuple[bytes, str]] = [
        (b"\xef\xbb\xbf" + json.dumps(person("bom")).encode() + b"\r", ""),
        (json.dumps(person("half", email="a\ud800@example.org")).encode(), "half: email"),
        (json.dumps(person("h\ud800")).encode(), "username 'h\\ud800': Use 1 to 32"),
        (json.dumps(person("lone", roles=["\udfff"])).encode(), "lone: there is no role \\udfff"),
        (good.replace("otto", "l\xe4tin").encode("latin-1"), "not UTF-8"),
        (good.encode("utf-16"), "not UTF-8"),
        (f'{{"username": {huge}}}'.encode(), "not valid JSON"),
        (f'{{"username": "deep", "x": {deep}}}'.encode(), "not valid JSON"),
        (b'{"username": "twice", "username": "two"}', "a field occurs twice"),
        (json.dumps(person("nan", active=float("nan"))).encode(), "nan: active must be"),
        (json.dumps(person("word", active="false")).encode(), "word: active must be"),
        (json.dumps(person("null", active=None)).encode(), "null: active must be"),
        (json.dumps(person("mail", email_verified=1)).encode(), "mail: email_verified must be"),
        (json.dumps(person("new\x1b[2J")).encode(), "Use 1 to 32"),
        (json.dumps(person("idn", email="idn@b\xfccher.example")).encode(), ""),
        (json.dumps(person("puny", email="IDN@xn--bcher-kva.example")).encode(), "is taken"),
        (json.dumps(person("BOM", email="bom2@example.org")).encode(), "is taken"),
        (json.dumps(person("soft", email="so\u00adft@example.org")).encode(), "soft: email"),
        (json.dumps(person("word2", email="=?utf-8?q?v?=@example.org")).encode(), "word2: email"),
        (b"null", "not a JSON object"),
        (b"5", "not a JSON object"),
        (json.dumps(person("u", password={"$binary": "x"})).encode(), "password is missing"),
    ]
    file = tmp_path / "odd.jsonl"
    file.write_bytes(b"\n".join(row for row, _ in rows))
    wanted = [(f"line {number}: ", why) for number, (_, why) in enumerate(rows, 1) if why]
    seen = []
    for words in (["--dry-run"], []):
        ran = await terminal.run("user", "import", str(file), *words)
        *named, total = ran.out.splitlines()
        for line, (place, why) in zip(named, wanted, strict=True):
            assert line.startswith(place), line
            assert why in line, line
        assert ran.status == 1
        assert total.endswith(": 2.")
        assert "\x1b" not in ran.out + ran.err
        seen.append(named)
    assert seen[0] == seen[1]
    shown = await terminal.does("user", "show", "idn")
    assert "idn@bücher.example" in shown


async def test_an_over_long_first_line_with_a_byte_order_mark_is_one_bad_line(
    terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "long.jsonl"
    for length in (64 * 1024, 200_000):
        long = json.dumps(person("x")).encode().ljust(length)
        file.write_bytes(b"\xef\xbb\xbf" + long + b"\n" + json.dumps(person("next")).encode())
        ran = await terminal.run("user", "import", str(file), "--dry-run")
        wanted = ["line 1: the line is longer than 64 KiB", "Accounts that would be created: 1."]
        assert ran.out.splitlines() == wanted


async def test_an_inactive_account_is_imported_as_disabled(
    terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "inactive.jsonl"
    rows = [person("idle", active=False), person("busy", active=True), person("unset")]
    file.write_text(lines(*rows))
    assert await terminal.does("user", "import", str(file)) == "Accounts created: 3.\n"
    for name, state in (("idle", "disabled"), ("busy", "active"), ("unset", "active")):
        assert f"state     {state}\n" in await terminal.does("user", "show", name)


async def test_valid_file_exits_with_0_and_is_imported_once(
    terminal: Terminal, tmp_path: Path, flask: tuple[str, Any]
) -> None:
    file = tmp_path / "people.jsonl"
    costly = bcrypt.hashpw(b"correct horse battery staple", bcrypt.gensalt(6)).decode()
    file.write_text(lines(person("kurt", password=costly), person("lena")))
    assert await terminal.does("user", "import", str(file)) == "Accounts created: 2.\n"
    noted = await flask[1].client["quartapp"].costs.find_one()
    assert noted["highest"] == 6, "unknown names take as long to check as these accounts"
    again = await terminal.run("user", "import", str(file))
    assert (again.status, again.out.count("username is taken")) == (1, 2)
    assert "Accounts created: 0." in again.out


@pytest.fixture
async def flask(terminal: Terminal) -> AsyncIterator[tuple[str, Any]]:
    """An empty database for documents in the format of MongoEngine, and its URI."""
    path = quote(str(terminal.data / "mongod.sock"), safe="")
    uri = f"mongodb://{path}/flask?directConnection=true"
    client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(uri)
    yield uri, client["flask"]
    client.close()


async def test_mongoengine_import_resolves_three_kinds_of_role_references(
    terminal: Terminal, flask: tuple[str, Any]
) -> None:
    uri, database = flask
    role = (await database.role.insert_one({"name": "moderator"})).inserted_id
    await database.user.insert_many(
        [
            person("mona", roles=[role], _cls="User"),
            person("nils", roles=[DBRef("role", role)], password=HASH.encode()),
            person("olga", roles=["member"]),
            person("paul", roles=[DBRef("role", "gone")]),
        ]
    )
    ran = await terminal.run("user", "import", "--from-mongo", uri, "--dry-run")
    assert "Accounts that would be created: 3." in ran.out
    ran = await terminal.run("user", "import", "--from-mongo", uri)
    assert ran.status == 1
    assert "Accounts created: 3." in ran.out
    assert "document " in ran.out
    assert "paul: " in ran.out
    for name, held in (("mona", "moderator"), ("nils", "moderator"), ("olga", "member")):
        assert f"roles     {held}\n" in await terminal.does("user", "show", name)


async def test_import_lists_unreadable_documents_and_imports_the_others(
    terminal: Terminal, flask: tuple[str, Any]
) -> None:
    uri, database = flask
    users, roles = database.odd, database.role
    far = {"born": DatetimeMS(10**16)}
    odd_ids = [{"a": 1}, Binary(b"\xff" * 4), 5.5, "x\x1b[31m" * 40]
    await users.insert_many([person("quinn", **far), *(person(f"r{n}") for n in range(2))])
    await users.insert_many([{"_id": each, **person(f"id{n}")} for n, each in enumerate(odd_ids)])
    await roles.insert_many([{"_id": {"a": 1}, "name": "member"}, {"_id": 7, "name": "moderator"}])
    await users.insert_one(person("sven", roles=[DBRef("role", 7)], active=False))
    latin = bson.encode(person("latin", note="e")).replace(b"\x02\0\0\0e\0", b"\x02\0\0\0\xe9\0")
    await users.insert_one(RawBSONDocument(latin))
    for words in (["--dry-run"], []):
        ran = await terminal.run(
            "user", "import", "--from-mongo", uri, "--collection", "odd", *words
        )
        *named, total = ran.out.splitlines()
        assert ran.status == 1
        assert total.endswith(": 8."), ran
        assert len(named) == 1
        assert "not UTF-8" in named[0]
        assert "Traceback" not in ran.err
    assert "roles     moderator\nstate     disabled" in await terminal.does("user", "show", "sven")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "name a FILE"),
        (["/nowhere/at/all"], "No such file"),
        (["--from-mongo", "nonsense"], "--from-mongo"),
        (["--from-mongo", "mongodb://127.0.0.1:9"], "has to name a database"),
        (["--from-mongo", "mongodb://127.0.0.1:9/flask"], "--from-mongo"),
    ],
)
async def test_invalid_import_source_is_reported_in_one_line(
    terminal: Terminal, words: list[str], complaint: str
) -> None:
    assert complaint in await terminal.refuses("user", "import", *words)


async def test_flask_security_import_requires_its_salt(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "scheme.jsonl"
    file.write_text(lines(person("tess")))
    words = ("user", "import", str(file), "--scheme", "flask-security")
    assert "FLASK_SECURITY_SALT" in await terminal.refuses(*words)
    ran = await terminal.run(*words, FLASK_SECURITY_SALT="canary-salt")
    assert (ran.status, ran.out) == (0, "Accounts created: 1.\n")


async def test_imported_account_is_verified_unless_the_row_says_otherwise(
    terminal: Terminal, tmp_path: Path, flask: tuple[str, Any]
) -> None:
    file = tmp_path / "people.jsonl"
    file.write_text(
        lines(
            person("ruth"),
            person("sara", email_verified=False),
            person("toni", email_verified="no"),
            person("ulla", email_verified=False, roles=["member", "moderator"]),
            person("umar", email_verified=None),
        )
    )
    ran = await terminal.run("user", "import", str(file), REQUIRE_VERIFIED_EMAIL="true")
    assert "line 3: toni: email_verified must be true or false" in ran.out
    assert "line 4: ulla: The email address of ulla is not verified" in ran.out
    uri, database = flask
    await database.person.insert_many(
        [
            person("vivi", confirmed_at=None),
            person("wera", confirmed_at=clock.now()),
            person("xeni"),
            person("yann", email_verified=None, confirmed_at=clock.now()),
            person("yoko", confirmed=False),
            person("yuri", confirmed=True),
            person("zack", confirmed="false"),
            person("zara", email_verified=0),
        ]
    )
    words = ("user", "import", "--from-mongo", uri, "--collection", "person")
    ran = await terminal.run(*words)
    wrong = [line.partition(": ")[2] for line in ran.out.splitlines()[:-1]]
    must_be = "must be true, false, null or a date"
    assert wrong == [f"confirmed {must_be}", f"email_verified {must_be}"]
    verified = ("ruth", "wera", "xeni", "yuri")
    unverified = dict.fromkeys(verified, False)
    unverified |= dict.fromkeys(("sara", "umar", "vivi", "yann", "yoko"), True)
    for name, expected in unverified.items():
        shown = await terminal.does("user", "show", name)
        assert ("unverified" in shown) is expected, name
    users = flask[1].client["quartapp"].users
    sara = await users.find_one({"username": "sara"})
    assert (sara["must_verify"], sara["deletes_at"]) == (True, None)
    assert not (await users.find_one({"username": "vivi"}))["must_verify"]
