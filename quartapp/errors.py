"""What is asked to come back: the base of all answers with Retry-After."""

from __future__ import annotations


class TryLater(Exception):
    """Not now. Its text is a sentence for whoever asked; `retry_after` is in whole seconds."""

    status = 503
    retry_after = 2

    def __init__(self, text: str = "The service is busy. Try again in a moment.") -> None:
        super().__init__(text)
