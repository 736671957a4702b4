"""Base class of the errors that are answered with a Retry-After header."""

from __future__ import annotations

from quartapp.i18n import lazy_gettext as _


class RetryLater(Exception):
    """The request cannot be served now. The text is for the user; `retry_after` is in seconds."""

    status = 503
    retry_after = 2

    def __init__(self, text: str = _("The service is busy. Try again in a moment.")) -> None:
        super().__init__(text)
