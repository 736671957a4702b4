from __future__ import annotations

import asyncio
import base64
import hmac
import subprocess
import sys
import threading
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import bcrypt
import pytest

from quartapp.security.passwords import SCHEMES, Busy, PasswordHasher

KEY, OLDER = b"k" * 32, b"o" * 32
GOOD = "correct horse battery staple"


def make(*keys: bytes, cost: int = 4, threads: int = 2, queue: int = 8) -> PasswordHasher:
    return PasswordHasher(keys or (KEY,), cost=cost, threads=threads, queue=queue)


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher = make()
    yield hasher
    hasher.close()


# ---- hashes


async def test_a_password_matches_only_its_own_hash(hasher: PasswordHasher) -> None:
    stored = await hasher.hash(GOOD)
    assert stored.startswith("$quartapp$")
    assert GOOD not in stored
    assert await hasher.verify(GOOD, stored)
    assert not await hasher.verify(GOOD + "r", stored)
    assert not await hasher.verify("", stored)


async def test_two_hashes_of_one_password_differ(hasher: PasswordHasher) -> None:
    assert await hasher.hash(GOOD) != await hasher.hash(GOOD)


@pytest.mark.parametrize(
    ("password", "other"),
    [
        ("x" * 72 + "a", "x" * 72 + "b"),
        ("x" * 255 + "a", "x" * 255 + "b"),
        ("😀" * 25, "😀" * 24 + "😁"),
        ("😀" * 256, "😀" * 255 + "😁"),
        ("pass\0word", "pass\0ward"),
    ],
    ids=["byte 73", "character 256", "emoji past 72 bytes", "256 emoji", "behind a NUL"],
)
async def test_every_character_counts(hasher: PasswordHasher, password: str, other: str) -> None:
    stored = await hasher.hash(password)
    assert await hasher.verify(password, stored)
    assert not await hasher.verify(other, stored)


async def test_unicode_forms_of_a_password_are_equivalent(hasher: PasswordHasher) -> None:
    assert await hasher.verify("cafe\u0301 society", await hasher.hash("café society"))


async def test_a_password_that_is_too_long_is_not_normalized(
    hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    normalize = unicodedata.normalize

    def watching(form: Any, text: str) -> str:
        lengths.append(len(text))
        assert threading.current_thread() is not threading.main_thread()
        return normalize(form, text)

    marks = "a" + "\u0315\u0300" * 15_000
    stored = [None, await hasher.hash(GOOD), plain(GOOD), plain(marks), plain("\0"), plain("")]
    with monkeypatch.context() as patch, watched(patch) as calls:
        patch.setattr(unicodedata, "normalize", watching)
        for each in stored:
            for password in (marks, "x" * 257, "x"):
                calls.clear()
                assert not await hasher.verify(password, each)
                assert len(calls) == 1, "the same work as for any wrong password"
        assert await hasher.verify("x" * 256, await hasher.hash("x" * 256))
    assert max(lengths) == 256
    with pytest.raises(ValueError, match="too long"):
        await hasher.hash("x" * 257)


@pytest.mark.parametrize(
    "password", ["", "\0", "a\0b", "\ud800", "a\udfffb", "x" * 100_000, "😀" * 1000]
)
@pytest.mark.parametrize("known", [True, False])
async def test_checking_any_password_raises_no_error(
    hasher: PasswordHasher, password: str, known: bool
) -> None:
    stored = await hasher.hash(GOOD) if known else None
    assert not await hasher.verify(password, stored)


@pytest.mark.parametrize(
    "stored",
    [
        *("", "$", "plain", "$quartapp$", "$quartapp$x$", "$2b$04$short", "$2b$99$" + "a" * 53),
        *("$quartapp$00000000$$2b$04$" + "a" * 53, "\0", "ü" * 60),
    ],
)
async def test_an_invalid_hash_matches_no_password(hasher: PasswordHasher, stored: str) -> None:
    for password in (GOOD, "", stored):
        assert not await hasher.verify(password, stored)


async def test_a_damaged_hash_matches_no_password(hasher: PasswordHasher) -> None:
    good = await hasher.hash(GOOD)
    key = good[: good.rindex("$2b$")]
    for stored in (key, f"{key}plain", f"{key}$2b$04$short", good[:-1], good[:-32]):
        assert not await hasher.verify(GOOD, stored)


async def test_a_damaged_hash_with_the_right_key_matches_no_password(
    hasher: PasswordHasher,
) -> None:
    stored = await hasher.hash(GOOD)
    for damaged in (stored[:-1], stored[: stored.rindex("$")], stored.replace("$2b$04", "$2b$xx")):
        assert not await hasher.verify(GOOD, damaged)


# ---- keys and costs


async def test_a_replaced_key_checks_old_hashes_and_creates_no_new_ones() -> None:
    before, rotated, after = make(OLDER), make(KEY, OLDER), make(KEY)
    old = await before.hash(GOOD)
    assert await rotated.verify(GOOD, old)
    assert rotated.needs_rehash(old)
    new = await rotated.hash(GOOD)
    assert not rotated.needs_rehash(new)
    assert await after.verify(GOOD, new)
    assert not await after.verify(GOOD, old)
    assert not await before.verify(GOOD, new)


async def test_only_a_hash_of_lower_cost_is_outdated() -> None:
    low, high = make(cost=4), make(cost=5)
    assert high.needs_rehash(await low.hash(GOOD))
    assert not low.needs_rehash(await high.hash(GOOD))
    assert await low.verify(GOOD, await high.hash(GOOD))


async def test_a_password_cannot_be_searched_with_the_database_alone() -> None:
    hasher, without_the_key = make(KEY), make(OLDER)
    _, _, _, hashed = (await hasher.hash(GOOD)).split("$", 3)
    assert not bcrypt.checkpw(GOOD.encode(), hashed.encode())
    # The hash depends on the key, and is not only labelled with its id.
    _, scheme, key_id, own = (await without_the_key.hash(GOOD)).split("$", 3)
    assert await without_the_key.verify(GOOD, f"${scheme}${key_id}${own}")
    assert not await without_the_key.verify(GOOD, f"${scheme}${key_id}${hashed}")
    for each in (hasher, without_the_key):
        each.close()


# ---- where and how often bcrypt runs


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Return the list of bcrypt calls with their threads."""
    calls: list[tuple[str, int]] = []

    def watch(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any) -> Any:
            calls.append((name, threading.get_ident()))
            return call(*args)

        return watching

    with monkeypatch.context() as patch:
        for name in ("hashpw", "checkpw"):
            patch.setattr(bcrypt, name, watch(name, getattr(bcrypt, name)))
        yield calls


async def test_bcrypt_never_runs_on_the_event_loop(
    hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as calls:
        stored = await hasher.hash(GOOD)
        await hasher.verify(GOOD, stored)
        await hasher.verify(GOOD, None)
        await hasher.verify(GOOD, "$quartapp$00000000$" + stored.split("$", 3)[3])
    assert len(calls) == 4
    assert threading.get_ident() not in {thread for _, thread in calls}


async def test_checking_an_unknown_user_costs_as_much_as_a_known_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher, other = make(KEY, cost=5), make(OLDER, cost=5)
    unknown_key = await other.hash(GOOD)
    stored = await hasher.hash(GOOD)
    for password, target in [(GOOD, stored), ("wrong", stored), (GOOD, None), (GOOD, unknown_key)]:
        hashes: list[bytes] = []

        def check(
            password: bytes,
            hashed: bytes,
            real: Callable[[bytes, bytes], bool] = bcrypt.checkpw,
            hashes: list[bytes] = hashes,
        ) -> bool:
            # Raises ValueError, without any work, for a hash that bcrypt cannot read.
            fits = real(password, hashed)
            hashes.append(hashed)
            return fits

        with monkeypatch.context() as patch:
            patch.setattr(bcrypt, "checkpw", check)
            fits = await hasher.verify(password, target)
        assert fits is ((password, target) == (GOOD, stored))
        assert [hashed[:7] for hashed in hashes] == [b"$2b$05$"], "one check, of the same cost"


async def test_no_password_matches_an_unknown_user(hasher: PasswordHasher) -> None:
    for password in ("", GOOD, "\0"):
        assert not await hasher.verify(password, None)


# ---- the queue


@asynccontextmanager
async def held(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[threading.Semaphore]:
    """Checks start immediately, and end when the semaphore allows it."""
    gate = threading.Semaphore(0)

    def wait(*_: bytes) -> bool:
        assert gate.acquire(timeout=20)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(bcrypt, "checkpw", wait)
        try:
            yield gate
        finally:
            gate.release(100)


async def is_busy(hasher: PasswordHasher) -> bool:
    """Return whether one more check is refused. An accepted one keeps running."""
    waiting = asyncio.ensure_future(hasher.verify(GOOD, None))
    try:
        async with asyncio.timeout(0.01):
            await asyncio.shield(waiting)
    except Busy:
        return True
    except TimeoutError:
        pass
    return False


async def test_checks_past_the_queue_limit_are_refused_immediately(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher = make(threads=2, queue=3)
    async with held(monkeypatch) as gate:
        waiting = [asyncio.ensure_future(hasher.verify(GOOD, None)) for _ in range(5)]
        await asyncio.sleep(0)
        for work in (hasher.verify(GOOD, None), hasher.hash(GOOD)):
            with pytest.raises(Busy) as busy:
                await work
            assert busy.value.retry_after >= 1
        gate.release(5)
        await asyncio.gather(*waiting)
        gate.release(1)
        await hasher.verify(GOOD, None)
    hasher.close()


async def test_a_cancelled_check_keeps_its_place_until_its_thread_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher = make(threads=1, queue=1)
    async with held(monkeypatch) as gate:
        gone = [asyncio.ensure_future(hasher.verify(GOOD, None)) for _ in range(2)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert await is_busy(hasher), "the threads still work on the cancelled checks"
        gate.release(2)
        turned_away = True
        async with asyncio.timeout(10):
            while turned_away:
                turned_away = await is_busy(hasher)
    hasher.close()


async def test_the_event_loop_runs_while_passwords_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher = make(threads=2, queue=10)
    async with held(monkeypatch) as gate:
        waiting = [asyncio.ensure_future(hasher.verify(GOOD, None)) for _ in range(10)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        # More than these need: a thread that an earlier test has left may take one.
        gate.release(100)
        await asyncio.gather(*waiting)
    hasher.close()


# ---- hashes of a Flask-Bcrypt application


def plain(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(cost)).decode()


@pytest.mark.parametrize("prefix", ["$2b$", "$2a$", "$2y$"])
async def test_a_plain_bcrypt_hash_matches_its_password_and_is_outdated(
    hasher: PasswordHasher, prefix: str
) -> None:
    stored = prefix + plain(GOOD)[4:]
    assert await hasher.verify(GOOD, stored)
    assert not await hasher.verify(GOOD + "r", stored)
    assert not await hasher.verify("", stored)
    assert hasher.needs_rehash(stored)


@pytest.mark.parametrize("password", ["ä" * 50, "x" * 100, "cafe\u0301 society", "😀" * 20])
async def test_a_plain_hash_uses_the_first_72_bytes_as_typed(
    hasher: PasswordHasher, password: str
) -> None:
    assert await hasher.verify(password, plain(password))


@pytest.mark.parametrize("stored_form", ["NFC", "NFD"])
@pytest.mark.parametrize("typed_form", ["NFC", "NFD"])
async def test_a_plain_hash_matches_its_password_in_either_unicode_form(
    hasher: PasswordHasher, stored_form: Any, typed_form: Any
) -> None:
    password, other = "café société 가각", "cafe societe 가각"
    stored = plain(unicodedata.normalize(stored_form, password))
    assert await hasher.verify(unicodedata.normalize(typed_form, password), stored)
    assert not await hasher.verify(unicodedata.normalize(typed_form, other), stored)
    # Neither form: Å as the sign for ångström, which was hashed as it was typed.
    assert await hasher.verify("\u212b e\u0301", plain("\u212b e\u0301"))


@pytest.mark.parametrize("password", ["", "\0", "a\0b", "\ud800", "x" * 100_000])
async def test_checking_any_password_against_a_plain_hash_raises_no_error(
    hasher: PasswordHasher, password: str
) -> None:
    assert not await hasher.verify(password, plain(GOOD))


async def test_a_hash_of_excessive_cost_is_not_checked(hasher: PasswordHasher) -> None:
    stored = plain(GOOD).replace("$04$", "$31$")
    async with asyncio.timeout(5):
        assert not await hasher.verify(GOOD, stored)


async def test_every_check_takes_as_much_work_as_the_most_costly_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = 0
    checkpw, hashpw = bcrypt.checkpw, bcrypt.hashpw

    def note(hashed: bytes) -> None:
        nonlocal work
        work += 2 ** int(hashed.split(b"$")[2])

    def counting_check(password: bytes, hashed: bytes) -> bool:
        note(hashed)
        return checkpw(password, hashed)

    def counting_hash(password: bytes, salt: bytes) -> bytes:
        note(salt)
        return hashpw(password, salt)

    low, hasher, high = make(cost=4), make(cost=6), make(cost=7)
    lower, own, higher = await low.hash(GOOD), await hasher.hash(GOOD), await high.hash(GOOD)
    monkeypatch.setattr(bcrypt, "checkpw", counting_check)
    monkeypatch.setattr(bcrypt, "hashpw", counting_hash)
    hashes = (None, own, lower, plain(GOOD, 4), plain(GOOD, 5), plain(GOOD, 6))
    # Where one of a higher cost is known of, all take as long as that one.
    for cost, targets in ((0, hashes), (7, (*hashes, higher, plain(GOOD, 7)))):
        for stored in targets:
            # The right password of a closed account must not be told from a wrong one.
            # One that may have been typed in several forms of Unicode is checked in each of them,
            # also where there is no plain hash, or none at all.
            for password, forms in (("wrong", 1), (GOOD, 1), ("é", 2), ("é e\u0301", 3)):
                work = 0
                fits = await hasher.verify(password, stored, cost=cost)
                assert fits is (password == GOOD and stored is not None)
                assert work == forms * 2 ** (cost or 6), (cost, stored, password)
    for each in (low, hasher, high):
        each.close()


# Prints what the packages make of each password that it is given.
FLASK = """
import sys
from flask import Flask
from flask_bcrypt import Bcrypt
from flask_security import RoleMixin, Security, UserMixin, hash_password
from flask_security.datastore import UserDatastore

class User(UserMixin):
    fs_uniquifier = email = active = password = None

class Role(RoleMixin):
    name = permissions = None

app = Flask("other")
app.config.update(
    SECRET_KEY="s", BCRYPT_HANDLE_LONG_PASSWORDS=True,
    SECURITY_PASSWORD_HASH="bcrypt", SECURITY_PASSWORD_SALT="salt",
    SECURITY_PASSWORD_HASH_PASSLIB_OPTIONS={"bcrypt__rounds": 4},
)
security = Security(app, UserDatastore(User, Role), register_blueprint=False)
with app.app_context():
    for password in sys.argv[1:]:
        normal = security.password_util.normalize(password)
        print(hash_password(normal), Bcrypt(app).generate_password_hash(password, 4).decode())
"""


async def test_hashes_of_flask_bcrypt_and_others_match_and_are_outdated() -> None:
    passwords = [
        GOOD,
        "p\u00e4ss w\u00f6rter " * 8,
        "\N{LATIN SMALL LIGATURE FI}sh \u00e9 and chips",
    ]
    made = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", FLASK, *passwords],
        capture_output=True,
        check=True,
        text=True,
    )
    salted = PasswordHasher([KEY], cost=4, threads=2, queue=8, salt=b"salt")
    wrong_salt = PasswordHasher([KEY], cost=4, threads=2, queue=8, salt=b"pepper")
    unsalted = make()
    for password, line in zip(passwords, made.stdout.splitlines(), strict=True):
        for scheme, bare in zip(("flask-security", "flask-bcrypt-long"), line.split(), strict=True):
            stored = SCHEMES[scheme] + bare
            if scheme == "flask-security":
                assert await salted.verify(unicodedata.normalize("NFD", password), stored)
            assert await salted.verify(password, stored)
            assert not await salted.verify(f"{password}x", stored)
            assert not await salted.verify(password, bare), "which is why the scheme is named"
            assert salted.needs_rehash(stored)
            for other in (unsalted, wrong_salt):
                assert await other.verify(password, stored) is (scheme != "flask-security")
    for hasher in (salted, wrong_salt, unsalted):
        hasher.close()


async def test_a_hash_scheme_without_a_salt_matches_no_password() -> None:
    """With a missing salt an attacker could make the hash match any password."""
    hasher, digest = make(), base64.b64encode(hmac.digest(b"", GOOD.encode(), "sha512"))[:72]
    stored = "$flask-security" + bcrypt.hashpw(digest, bcrypt.gensalt(4)).decode()
    assert not await hasher.verify(GOOD, stored)
    hasher.close()
