"""Logging to standard error: JSON lines in production, coloured lines in development.

A line consists of names and values, so a client cannot forge one (ASVS 16.4.1). The names of
security events are those of the OWASP logging vocabulary. Tracebacks do not show the values of
local variables, which structlog does by default, because a password may be among them.
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


def add_to_request(**fields: Any) -> None:
    """Add the fields to each log line of the present request, or of the present asyncio task."""
    structlog.contextvars.bind_contextvars(**fields)


def print_line(event: str, text: str, *, production: bool, **values: Any) -> None:
    """Print the text as a line on standard output.

    In production the line is a JSON object with the text as `said`, the event, the values, the
    level and the time; otherwise event and values are not printed.
    """
    if production:
        line = {"said": text, **values, "event": event, "level": "info"}
        text = json.dumps({**line, "timestamp": datetime.now(UTC).isoformat()})
    print(text.encode(errors="backslashreplace").decode(), flush=True)


def capture_library_logs() -> None:
    """Log what libraries log through Python's `logging`, as the event `library`, from now on.

    It changes the root logger, so call it once and only in a process that is our own.
    """
    logging.getLogger().addHandler(LibraryLogHandler())


class LibraryLogHandler(logging.Handler):
    """A handler of Python's `logging` that passes records to `log`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record as the event `library`, with its level, logger, text and traceback."""
        fields = {"logger": record.name, "said": record.getMessage()}
        log.log(record.levelno, "library", exc_info=record.exc_info, **fields)


def configure(*, production: bool, worker: str | None = None) -> None:
    """Configure structlog for this process: lines on standard error, with the level, the time in
    UTC and the fields of `add_to_request`; those below INFO are dropped.

    In production they are JSON, with tracebacks as data. Call it once, before the process serves.
    With `worker`, each line has that field.
    """

    def add_worker(_: Any, __: str, line: EventDict) -> EventDict:
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
            add_worker,
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
