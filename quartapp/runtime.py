"""What one worker owns while it runs, and typed access to it from a request."""

from __future__ import annotations

from typing import Any

from quart import current_app

from quartapp.security.encryption import Seal
from quartapp.security.password_policy import PasswordPolicy
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings


def runtime() -> Any:
    return current_app.extensions["quartapp"]


def settings() -> Settings:
    return runtime().settings


def hasher() -> PasswordHasher:
    return runtime().hasher


def password_policy() -> PasswordPolicy:
    return runtime().password_policy


def seal() -> Seal:
    return runtime().seal
