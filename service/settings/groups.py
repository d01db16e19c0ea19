"""Groups of settings that several processes share. Below the composition roots nobody sees more than a group."""

from __future__ import annotations

import base64
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_REDIS_FORM = "must look like redis://:password@host:6379/0, rediss://… or unix:///path"
_S3_FORM = "must look like https://s3.example:8333"
_KEY_BYTES = 32
_KEY_FORM = "must be base64 of 32 random bytes (openssl rand -base64 32), or several such, separated by commas"


class RedisSettings(BaseSettings):
    """Where jobs live."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_REDIS_", env_ignore_empty=True, frozen=True)

    #: `redis://`, `rediss://` or `unix://`. Redis ≥ 6.2 or Valkey, one primary, with AOF on.
    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")

    @field_validator("url")
    @classmethod
    def _is_of_redis(cls, url: SecretStr) -> SecretStr:
        if not _is_redis_url(url.get_secret_value()):
            raise ValueError(_REDIS_FORM)
        return url


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

    @field_validator("endpoint", "public_endpoint")
    @classmethod
    def _is_of_a_server(cls, url: str | None) -> str | None:
        if url is not None and not names_a_host(url, {"http", "https"}):
            raise ValueError(_S3_FORM)
        return url


class WebhookSettings(BaseSettings):
    """How the secrets that webhooks are signed with lie in Redis."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_WEBHOOK_", env_ignore_empty=True, frozen=True)

    #: Base64 of 32 random bytes; None = secrets are not encrypted. Several, separated by commas, to change it: the
    #: first encrypts, all decrypt.
    key: SecretStr | None = None

    @field_validator("key")
    @classmethod
    def _is_keys(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not all(len(each) == _KEY_BYTES for each in _decoded_keys(key)):
            raise ValueError(_KEY_FORM)
        return key

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The keys, 32 bytes each; none where secrets are not encrypted."""
        return () if self.key is None else _decoded_keys(self.key)


class LogSettings(BaseSettings):
    """How events are written to stderr."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_ignore_empty=True, frozen=True)

    #: `console` for people, `json` (one object a line) for collectors.
    log: Literal["console", "json"] = "console"
    #: Least severe level that is written.
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def _decoded_keys(text: SecretStr) -> tuple[bytes, ...]:
    """Return what base64 texts between commas hold; nothing for a text that is none."""
    keys: list[bytes] = []
    for each in text.get_secret_value().split(","):
        try:
            keys.append(base64.b64decode(each.strip(), validate=True))
        except ValueError:
            keys.append(b"")
    return tuple(keys)


def _is_redis_url(url: str) -> bool:
    if url.startswith("unix://"):
        return url.removeprefix("unix://").startswith("/")
    if not names_a_host(url, {"redis", "rediss"}):
        return False
    database = urlsplit(url).path.strip("/")
    return database == "" or (database.isascii() and database.isdigit())


def names_a_host(url: str, schemes: set[str]) -> bool:
    """Tell whether a URL has one of these schemes, a host, and a port that is one (or none)."""
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
