"""Groups of settings for what a process tells of itself."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class MetricsSettings(BaseSettings):
    """Where Prometheus finds what a process counts: never the port that callers reach."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_METRICS_", env_ignore_empty=True, frozen=True)

    #: TCP port; 0 = nothing listens.
    port: int = Field(default=0, ge=0, le=65_535)
    #: The address that the port is opened on. It answers whoever reaches it.
    host: str = "127.0.0.1"
