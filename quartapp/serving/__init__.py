"""`quartapp serve`: a launcher process, a fork server and the worker processes that it forks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quartapp.settings import Settings

__all__ = ["patch_hypercorn"]


def patch_hypercorn(settings: Settings) -> None:
    """Replace classes of hypercorn by ours in this process, for connections accepted from now on.

    That is the protection against hostile clients, and what makes it faster unless `FAST_PATH` is
    off. Workers of `quartapp serve` call it; an `asgi.py` calls it before it creates its app.
    """
    # The launcher imports this package and does not need hypercorn.
    from quartapp.serving import hypercorn_latency, hypercorn_security

    hypercorn_security.install()
    if settings.fast_path:
        hypercorn_latency.install()
