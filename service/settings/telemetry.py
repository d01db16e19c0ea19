"""Groups of settings for what a process tells of itself: metrics and traces."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.settings.groups import names_a_host

_OTLP_FORM = "must look like http://collector:4318"


class MetricsSettings(BaseSettings):
    """Where Prometheus finds what a process counts: never the port that callers reach."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_METRICS_", env_ignore_empty=True, frozen=True)

    #: TCP port; 0 = nothing listens.
    port: int = Field(default=0, ge=0, le=65_535)
    #: The address that the port is opened on. It answers whoever reaches it.
    host: str = "127.0.0.1"


class TracingSettings(BaseSettings):
    """Where spans are sent to. OpenTelemetry reads variables of its own besides, those that begin with OTEL_."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_TRACING_", env_ignore_empty=True, frozen=True)

    #: A collector of OpenTelemetry that takes OTLP over HTTP, as `http://collector:4318`; None = nothing is traced. May
    #: hold a user and a password, hence a secret.
    endpoint: SecretStr | None = None

    @property
    def collector(self) -> str | None:
        """The endpoint as it is used."""
        return self.endpoint.get_secret_value() if self.endpoint else None

    @field_validator("endpoint")
    @classmethod
    def _is_of_a_collector(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not names_a_host(url.get_secret_value(), {"http", "https"}):
            raise ValueError(_OTLP_FORM)
        return url
