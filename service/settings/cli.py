"""What the `darkroom` command reads from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class UpSettings(BaseSettings):
    """`darkroom up`: one machine, everything on it."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_ignore_empty=True, frozen=True, populate_by_name=True)

    #: Folder of the embedded servers' data, the logs and the first pictures; beside the caller, so that it is seen.
    home: Path = Path(".darkroom")
    #: TCP port of the gateway on 127.0.0.1.
    port: int = Field(default=8000, ge=1, le=65535, validation_alias=AliasChoices("DARKROOM_PORT", "PORT"))
    #: The first of the ports on which gateway, worker and sender, in this order, show their metrics; 0 = none.
    metrics_port: int = Field(default=0, ge=0, le=65_000)
    #: A Redis to use instead of the embedded Valkey.
    redis_url: SecretStr | None = None
    #: An S3 to use instead of the embedded one.
    s3_endpoint: str | None = None


class ClientSettings(BaseSettings):
    """`darkroom generate` and `darkroom models`: which gateway, and as whom."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_ignore_empty=True, frozen=True)

    url: str = "http://127.0.0.1:8000"
    #: `dk_<id>_<secret>`; None for a gateway with AUTH=none.
    key: SecretStr | None = None


def child_environment(changes: Mapping[str, str], *, defaults: Mapping[str, str]) -> dict[str, str]:
    """Return this process' environment between `defaults` and `changes`, for a process that `darkroom` starts."""
    return {**defaults, **os.environ, **changes}  # noqa: TID251 - the one place that hands the environment on
