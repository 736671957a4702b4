"""The format of the log, and what it must not contain."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from quartapp import log

CANARY = "canary-of-a-password"
HOSTILE = [
    "a\r\nforged line",
    "a\nforged",
    "a\rforged",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\u2028b\u2029c\x85d",
    '"}\n{"event": "forged"}',
    "\0",
    "\ud800",
]


@pytest.fixture
def configured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = capsys.readouterr().err
    assert text.endswith("\n")
    return text[:-1].split("\n")


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
@pytest.mark.usefixtures("configured")
def test_a_production_log_line_is_one_json_object_for_any_input(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(production=True)
    log.log.warning("authn_login_fail", login=value, deep={value: [value]})
    (line,) = lines(capsys)
    assert line.isprintable()
    said = json.loads(line)
    assert said["event"] == "authn_login_fail"
    assert said["login"] == value
    assert said["level"] == "warning"
    assert said["timestamp"].endswith("Z")


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
@pytest.mark.usefixtures("configured")
def test_development_logs_escape_terminal_sequences(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(production=False)
    log.log.warning("authn_login_fail", login=value)
    (line,) = lines(capsys)
    assert line.isprintable()
    assert "authn_login_fail" in line


@pytest.mark.parametrize("production", [True, False])
@pytest.mark.usefixtures("configured")
def test_an_error_is_logged_with_its_traceback_and_without_locals(
    production: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(form: dict[str, str]) -> None:
        password = form["password"]
        raise LookupError("no such thing" if password else "")

    log.configure(production=production)
    given = "".join(["canary", "-of-a-", "password"])  # not as one word in the source that it shows
    try:
        check({"password": given})
    except LookupError as error:
        log.log.exception("error_page_failed")
        log.log.error("unhandled", exc_info=error)
    said = capsys.readouterr().err
    assert said.count("no such thing") >= 2
    assert "test_log.py" in said
    assert CANARY not in said


@pytest.mark.usefixtures("configured")
def test_log_records_of_libraries_have_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(production=True, worker="7")
    root = logging.getLogger()
    before = [*root.handlers]
    log.capture_library_logs()
    try:
        logging.getLogger("a.library").info("too quiet")
        try:
            raise LookupError("no such thing")
        except LookupError:
            logging.getLogger("a.library").exception("Error in\n%s", "ASGI")
    finally:
        root.handlers = before
    (line,) = lines(capsys)
    said = json.loads(line)
    assert (said["event"], said["level"], said["worker"]) == ("library", "error", "7")
    assert (said["logger"], said["said"]) == ("a.library", "Error in\nASGI")
    assert said["exception"][0]["exc_value"] == "no such thing"
