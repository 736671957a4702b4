"""User management for Quart in which a revocation takes effect on every open page at once.

Importing the package is cheap: `create_app` imports the application when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quart import Quart

    from quartapp.settings import Settings

__all__ = ["create_app"]


def create_app(settings: Settings | None = None) -> Quart:
    """Return the application. Without settings, they are read from the environment.

    When the application starts, it connects to the database, or starts the embedded one if no
    address is configured, prepares it, and opens the change stream. Raises StartError if the
    settings are invalid.
    """
    from quartapp import application

    return application.create_app(settings)
