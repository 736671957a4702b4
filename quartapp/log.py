"""What the application says of itself: JSON lines in production, coloured lines in development.

A line is data (names and values), so nothing that a client sends can forge one (ASVS 16.4.1).
Names of security events are those of the OWASP logging vocabulary. Tracebacks come without the
values of local variables, which structlog shows otherwise: a password may be among them.
docs/security.md lists what is logged.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def note(**what: Any) -> None:
    """Adds this to each line of the request that is being answered."""
    structlog.contextvars.bind_contextvars(**what)


def say(event: str, text: str, *, production: bool, **values: Any) -> None:
    """Print a line on standard output: the text, or in production a JSON object with it."""
    if production:
        line = {"said": text, **values, "event": event, "level": "info"}
        text = json.dumps({**line, "timestamp": datetime.now(UTC).isoformat()})
    print(text.encode(errors="backslashreplace").decode(), flush=True)


def adopt() -> None:
    """What libraries say goes the way of our own lines from now on. For a process of our own."""
    logging.getLogger().addHandler(Adopted())


class Adopted(logging.Handler):
    """Passes on what comes by Python's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        said = {"logger": record.name, "said": record.getMessage()}
        log.log(record.levelno, "library", exc_info=record.exc_info, **said)


def configure(*, production: bool, worker: str | None = None) -> None:
    """Call it once in a process, before it serves. Each line names the worker, if there is one."""

    def where(_: Any, __: str, line: EventDict) -> EventDict:
        return line if worker is None else {**line, "worker": worker}

    renderer = (
        structlog.processors.JSONRenderer()
        if production
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            repr_native_str=True,
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            where,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
            if production
            else structlog.processors.StackInfoRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
