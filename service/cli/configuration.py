"""Settings for a command: what is wrong with them ends it with one line."""

from __future__ import annotations

from typing import TypeVar

from pydantic_settings import BaseSettings

from service.cli.failure import CommandFailed
from service.settings.reading import SettingsError, read_settings

S = TypeVar("S", bound=BaseSettings)


def read_configuration(group: type[S]) -> S:
    """Return the group as the environment gives it; raises CommandFailed naming each wrong variable."""
    try:
        return read_settings(group)
    except SettingsError as err:
        raise CommandFailed(str(err)) from err
