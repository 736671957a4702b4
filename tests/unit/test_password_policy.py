"""Which passwords are accepted, and where the costly part of that rule runs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from quartapp.security import password_scoring
from quartapp.security.password_policy import (
    COMMON_PASSWORDS,
    CONTEXT_WORDS,
    PasswordPolicy,
    obvious_weakness,
)
from quartapp.security.password_scoring import MAX_WAITING, SCORED_CHARACTERS, PasswordScorer
from quartapp.security.passwords import Busy
from tests.people import SECONDS

GOOD = "correct horse battery staple"
LONG = hashlib.sha512(b"").hexdigest() * 2
EMOJI = "".join(chr(0x1F600 + number * number * 7 % 71) for number in range(256))
# The costliest that was found for zxcvbn: symbols that it knows as letters, each of them once.
COSTLY = "4z8({$<3689!1|70$5+%2!@8({[<l6&9!1|70b|+"


@pytest.fixture(scope="module")
async def policy() -> AsyncIterator[PasswordPolicy]:
    policy = PasswordPolicy()
    yield policy
    await policy.close()


@pytest.fixture
async def scorer() -> AsyncIterator[PasswordScorer]:
    scorer = PasswordScorer()
    yield scorer
    await scorer.close()


# ---- the rule


@pytest.mark.parametrize(
    "password",
    [GOOD, "tr0ub4dor&3-xyzzy", "все счастливые семьи", LONG, EMOJI[:20], EMOJI],
    ids=["words", "symbols", "another script", "256 letters", "emoji", "256 emoji"],
)
async def test_good_passwords_of_any_characters_are_accepted(
    policy: PasswordPolicy, password: str
) -> None:
    assert len(password) <= 256
    assert await policy.weakness(password) is None


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("", "at least 8"),
        ("x7#q!2z", "at least 8"),
        ("é😀é😀é😀é", "at least 8"),
        (LONG + "x", "at most 256"),
        (EMOJI + "x", "at most 256"),
        ("password", "too easy"),
        ("12345678", "too easy"),
        ("qwertyuiop", "too easy"),
        ("aaaaaaaaaaaa", "too easy"),
        ("quartapp1", "too similar to your username"),
        ("correct horse\0battery", "cannot be used"),
        ("correct horse \ud800 battery", "cannot be used"),
    ],
)
async def test_a_weak_password_is_refused_with_a_reason(
    policy: PasswordPolicy, password: str, says: str
) -> None:
    sentence = await policy.weakness(password)
    assert sentence is not None
    assert says in sentence


@pytest.mark.parametrize("password", ["zuzanna-wrobel", "ZuzannaWrobel", "kwiaciarnia.example"])
async def test_a_password_made_of_personal_data_is_refused(
    policy: PasswordPolicy, password: str
) -> None:
    assert await policy.weakness(password) is None
    context = ["zuzanna-wrobel", "zuzannawrobel@kwiaciarnia.example"]
    assert await policy.weakness(password, context=context) is not None


async def test_the_most_common_passwords_of_leaks_are_refused(policy: PasswordPolicy) -> None:
    often = "password1 iloveyou qwertyuiop 1q2w3e4r5t 1qaz2wsx sunshine1 princess1 fqrg7cs493"
    taken = [p for p in often.split() if await policy.weakness(p) is None]
    taken += [p for p in COMMON_PASSWORDS if obvious_weakness(p) is None]
    taken += [p for p in COMMON_PASSWORDS if obvious_weakness(f" {p.upper()} ") is None]
    assert taken == []


async def test_context_words_do_not_strengthen_a_password(policy: PasswordPolicy) -> None:
    assert {"quartapp", "admin", "moderator", "member"} <= set(CONTEXT_WORDS)
    for word in (*CONTEXT_WORDS, "Zuzanna-Wrobel"):
        for password in (word, word * 3, f"{word}-{word}", f"{word.upper()} 2026!", f"my {word}"):
            sentence = await policy.weakness(password.ljust(8, "!"), context=["zuzanna-wrobel"])
            assert sentence is not None, password
    assert await policy.weakness("I remember my purple otter", context=["ada", "er"]) is None


# ---- the scoring process


def test_the_application_never_scores_in_its_own_process() -> None:
    """zxcvbn holds the interpreter's lock: where it is imported, an event loop would stop."""
    sources = {
        path.name
        for path in Path(password_scoring.__file__).parent.rglob("*.py")
        if "zxcvbn_rs_py" in path.read_text("utf-8")
    }
    assert sources == {"password_scoring_process.py"}
    importers = [name for name in sys.modules if name.endswith("password_scoring_process")]
    assert importers == []


async def test_the_event_loop_runs_while_the_costliest_password_is_scored(
    scorer: PasswordScorer,
) -> None:
    scoring = asyncio.create_task(scorer.score(COSTLY, []))
    turns = 0
    while not scoring.done():
        # Not without a pause: the process has a low priority, and would hardly get a core.
        await asyncio.sleep(0.001)
        turns += 1
    assert (await scoring).score == 4
    assert turns > 10


async def test_only_the_first_characters_are_scored(
    scorer: PasswordScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    strong = "kq7Zx!vRb3LmPw9"
    assert (await scorer.score(strong + "a" * SCORED_CHARACTERS, [])).score == 4
    assert (await scorer.score("a" * SCORED_CHARACTERS + strong, [])).score < 3


async def test_scoring_past_the_queue_limit_is_refused_immediately(
    scorer: PasswordScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = asyncio.Event()

    async def wait(_: bytes) -> bytes:
        await released.wait()
        return b'[4, ""]'

    monkeypatch.setattr(scorer, "_ask", wait)
    waiting = [asyncio.create_task(scorer.score(GOOD, [])) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    # Those whose client hangs up keep their place: their password is scored all the same.
    waiting.pop().cancel()
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await asyncio.wait_for(scorer.score(GOOD, []), SECONDS)
    released.set()
    assert {(await task).score for task in waiting} == {4}
    assert (await scorer.score(GOOD, [])).score == 4


async def test_scores_match_their_requests_when_a_client_disconnects(
    scorer: PasswordScorer,
) -> None:
    for _ in range(5):
        gone = asyncio.create_task(scorer.score("password", []))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await scorer.score(GOOD, [])).score == 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGALRM], ids=["killed", "idle"])
async def test_a_scoring_process_that_has_ended_is_started_again(
    scorer: PasswordScorer, number: signal.Signals
) -> None:
    assert (await scorer.score(GOOD, [])).score == 4
    assert scorer._process
    first = scorer._process
    # A terminal or a supervisor tells all processes to stop: it ends with its worker instead.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(first.pid, ignored)
    assert (await scorer.score(GOOD, [])).score == 4
    assert scorer._process is first
    os.kill(first.pid, number)
    assert (await scorer.score("password", [])).score == 0
    # The exit code is not compared: subprocess may collect it before the watcher of asyncio does.
    await first.wait()
    assert scorer._process is not first


@pytest.mark.parametrize(
    "loop_factory",
    [asyncio.new_event_loop, uvloop.new_event_loop],
    ids=["asyncio", "uvloop"],
)
def test_a_scoring_process_whose_end_was_noticed_is_started_again(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """uvloop, which the server runs on, closes the pipe and then raises RuntimeError."""

    async def score_again() -> None:
        scorer = PasswordScorer()
        assert (await scorer.score(GOOD, [])).score == 4
        assert scorer._process
        assert scorer._process.stdin
        os.kill(scorer._process.pid, signal.SIGALRM)
        await scorer._process.wait()
        await scorer._process.stdin.wait_closed()
        assert (await scorer.score(GOOD, [])).score == 4
        await scorer.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(score_again())


async def test_a_scoring_process_that_hangs_is_killed(
    scorer: PasswordScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await scorer.score(GOOD, [])).score == 4
    assert scorer._process
    hanging = scorer._process
    os.kill(hanging.pid, signal.SIGSTOP)
    monkeypatch.setattr(password_scoring, "TIMEOUT_SECONDS", 0.05)
    with pytest.raises(Busy):
        await scorer.score(GOOD, [])
    assert hanging.returncode == -signal.SIGKILL
    monkeypatch.undo()
    assert (await scorer.score(GOOD, [])).score == 4


async def test_a_scoring_process_that_cannot_start_is_answered_with_busy(
    scorer: PasswordScorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(Busy):
        await scorer.score(GOOD, [])
    monkeypatch.undo()
    monkeypatch.setattr(password_scoring, "_PROGRAM", str(tmp_path / "none"))
    with pytest.raises(Busy):
        await scorer.score(GOOD, [])


async def test_the_scoring_process_ends_with_its_worker() -> None:
    scorer = PasswordScorer()
    await scorer.score(GOOD, [])
    process = scorer._process
    assert process
    assert process.stdin
    # A worker that is killed closes no more than its files.
    process.stdin.close()
    assert await process.wait() == 0
    await scorer.close()


def test_the_scoring_process_holds_no_socket_of_its_worker() -> None:
    async def open_files() -> set[str]:
        scorer = PasswordScorer()
        await scorer.score(GOOD, [])
        assert scorer._process
        try:
            return set(os.listdir(f"/proc/{scorer._process.pid}/fd"))
        finally:
            await scorer.close()

    with (
        socket.socket() as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        listener.set_inheritable(True)
        assert runner.run(open_files()) == {"0", "1", "2"}
