"""Settings from the environment, or one clear line that names the variable."""

from __future__ import annotations

from typing import TypeVar

from pydantic import AliasChoices, ValidationError
from pydantic_settings import BaseSettings

S = TypeVar("S", bound=BaseSettings)


class SettingsError(Exception):
    """A setting is missing or malformed; the message is one line for the operator and never shows the value."""


def read_settings(group: type[S]) -> S:
    """Return the group as the environment gives it.

    Raises `SettingsError` naming each wrong variable and what it takes.
    """
    try:
        return group()
    except ValidationError as err:
        # A validator over the whole group has no field of its own: its message names the variable.
        lines = [
            f"{_variable(group, str(each['loc'][0]))}: {_lowered(each['msg'])}"
            if each["loc"]
            else str(each["msg"]).removeprefix("Value error, ")
            for each in err.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise SettingsError("; ".join(lines)) from None


def _variable(group: type[BaseSettings], located: str) -> str:
    """Name the environment variable of a field; pydantic reports the first alias where a field has several."""
    for name, field in group.model_fields.items():
        alias = field.validation_alias
        names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
        if located == name or located in names:
            return " or ".join(names) or f"{group.model_config.get('env_prefix', '')}{name}".upper()
    return located.upper()


def _lowered(message: str) -> str:
    text = message.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
