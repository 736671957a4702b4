"""The only clock, so that tests can move it."""

from datetime import UTC, datetime


def now() -> datetime:
    """The time as aware UTC, cut to the milliseconds that MongoDB keeps."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
