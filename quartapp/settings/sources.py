"""Reading settings from the environment and `.env`, with errors that name the setting at fault."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Self, get_args

from pydantic import SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from quartapp.settings.misspelt import misspelt
from quartapp.settings.values import StartError


class FromEnvironment(BaseSettings):
    """Settings whose values come from the environment or, if it lacks them, from `.env`.

    A blank value counts as unset.
    """

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    @classmethod
    def read(cls, **overrides: Any) -> Self:
        """Return the settings; `overrides` take precedence over the environment and `.env`.

        Blank overrides are ignored. Checks each value only by itself. Raises StartError, also if
        `.env` cannot be read. Its message names each setting that cannot be used, and shows no
        value.
        """
        overrides = {
            name: value for name, value in overrides.items() if not _is_blank(_plain_text(value))
        }
        if "data" in overrides:
            # Allowing fields by their own names would also read a variable called DATA.
            overrides["QUARTAPP_DATA"] = overrides.pop("data")
        try:
            return cls(**overrides)
        except ValidationError as error:
            faults = {f"{_name_in(each)}: {cls._explain(each)}" for each in error.errors()}
            raise StartError("; ".join(sorted(faults))) from None
        except SettingsError as error:
            # Raised before any value is validated. The name stands in quotes in its message.
            name = str(error).split('"')[1].upper()
            raise StartError(f'{name}: write a JSON list, like ["one", "two"]') from None
        except (OSError, UnicodeError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
            raise StartError(f".env cannot be read: {why}") from None

    @classmethod
    def raw(cls, name: str) -> str:
        """Return the unvalidated value from the environment, else from `.env`, without spaces
        around it.

        Returns an empty string if the value is unset or `.env` cannot be read. Works even if other
        settings are invalid.
        """
        with suppress(OSError, UnicodeError):
            for source in (EnvSettingsSource(cls), DotEnvSettingsSource(cls)):
                if value := (source.env_vars.get(name.lower()) or "").strip():
                    return value
        return ""

    @classmethod
    def unknown_names(cls) -> list[str]:
        """Return a sentence for each name in the environment or `.env` that looks misspelt."""
        known = {name_of(name, field) for name, field in cls.model_fields.items()}
        names = (*EnvSettingsSource(cls).env_vars, *DotEnvSettingsSource(cls).env_vars)
        return [
            f"{name}: there is no such setting" + (f", did you mean {closest}?" if closest else "")
            for name, closest in misspelt(names, known).items()
        ]

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        """Return the value of any setting unchanged. Raises ValueError for a text that is not
        UTF-8."""
        # Python keeps bytes of the environment that are not UTF-8 as lone surrogates.
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise ValueError("this is not UTF-8 text")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, those with precedence first: overrides, the environment and `.env`.
        Removes the blank values of the last two. Secret files are not read."""
        for source in (env_settings, dotenv_settings):
            assert isinstance(source, EnvSettingsSource)
            source.env_vars = {
                name: value for name, value in source.env_vars.items() if value and value.strip()
            }
        return init_settings, env_settings, dotenv_settings

    @classmethod
    def _explain(cls, error: ErrorDetails) -> str:
        """Return what to write instead of an invalid value, without showing the value.

        This is the text of the validator's ValueError, the choices, "write true or false", or the
        bounds of the number. "This value cannot be used" for other types.
        """
        kind = error["type"]
        if kind == "value_error":
            return str(error.get("ctx", {})["error"])
        if kind == "literal_error":
            return f"write {error.get('ctx', {})['expected']}"
        if kind.startswith("bool"):
            return "write true or false"
        field = next(
            field
            for name, field in cls.model_fields.items()
            if name_of(name, field) == _name_in(error)
        )
        numbers = {int, float} & {field.annotation, *get_args(field.annotation)}
        if not numbers:
            return "this value cannot be used"
        least, above, most = bounds_of(field)
        start = f"from {least}" if above is None else f"above {above}"
        return f"write a {'whole ' if int in numbers else ''}number {start} to {most}"


def name_of(name: str, field: FieldInfo) -> str:
    """Return the name of a setting in the environment."""
    return str(field.validation_alias or name).upper()


def bounds_of(field: FieldInfo) -> tuple[Any, Any, Any]:
    """Return the least value, the value that must be exceeded, and the largest value of a setting.
    Each is None if the field does not declare it."""
    least, above, most = (
        next((getattr(m, bound) for m in field.metadata if hasattr(m, bound)), None)
        for bound in ("ge", "gt", "le")
    )
    return least, above, most


def _name_in(error: ErrorDetails) -> str:
    """Return the name of the setting at fault."""
    return str(error["loc"][0]).upper()


def _plain_text(value: object) -> object:
    """Return the text of a SecretStr, and any other value as it is."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()
