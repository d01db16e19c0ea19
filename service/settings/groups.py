"""Groups of settings that several processes share. Below the composition roots nobody sees more than a group."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class RedisSettings(BaseSettings):
    """Where jobs live."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_REDIS_", env_ignore_empty=True, frozen=True)

    #: `redis://`, `rediss://` or `unix://`. Redis ≥ 6.2 or Valkey, one primary, with AOF on.
    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")


class StorageSettings(BaseSettings):
    """Where pictures live: any S3."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_S3_", env_ignore_empty=True, frozen=True)

    #: As gateways and workers reach it; None = AWS.
    endpoint: str | None = None
    #: As callers reach it: a signature covers the host name. None = the same as `endpoint`.
    public_endpoint: str | None = None
    bucket: str = "darkroom"
    region: str = "us-east-1"
    #: None = boto3's own search: environment, instance role, …
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    #: s; a link is a bearer secret, so it is short.
    link_ttl_s: int = Field(default=3600, ge=60, le=3600)


class LogSettings(BaseSettings):
    """How events are written to stderr."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_ignore_empty=True, frozen=True)

    #: `console` for people, `json` (one object a line) for collectors.
    log: Literal["console", "json"] = "console"
    #: Least severe level that is written.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
