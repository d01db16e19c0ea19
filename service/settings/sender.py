"""Settings of the sender of webhooks."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.settings.egress import EgressSettings
from service.settings.groups import LogSettings, RedisSettings, WebhookSettings
from service.settings.reading import read_settings
from service.settings.telemetry import MetricsSettings, TracingSettings


class DeliverySettings(BaseSettings):
    """How much is sent at once, and how long a receiver is waited for."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_WEBHOOK_", env_ignore_empty=True, frozen=True)

    #: Events that one sender sends at once. Each is a connection of its own.
    concurrency: int = Field(default=100, ge=2, le=1000)
    #: Events that one endpoint is sent at once, by all senders together; one at a time while it fails.
    endpoint_limit: int = Field(default=4, ge=1, le=100)
    #: Events that one tenant's endpoints are sent at once, by all senders together: no tenant holds all connections.
    tenant_limit: int = Field(default=25, ge=2, le=1000)
    #: s for a receiver to answer; Standard Webhooks advises 15 to 30.
    timeout_s: float = Field(default=15.0, ge=1, le=60)
    #: s between two looks for events that are due, while there are none.
    poll_s: float = Field(default=0.2, ge=0.01, le=10)

    @model_validator(mode="after")
    def _endpoint_within_tenant(self) -> DeliverySettings:
        if self.endpoint_limit > self.tenant_limit:
            msg = "DARKROOM_WEBHOOK_ENDPOINT_LIMIT: must not be more than DARKROOM_WEBHOOK_TENANT_LIMIT"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class SenderSettings:
    """Everything the sender reads from its environment."""

    delivery: DeliverySettings
    webhooks: WebhookSettings
    egress: EgressSettings
    redis: RedisSettings
    log: LogSettings
    metrics: MetricsSettings
    tracing: TracingSettings

    @classmethod
    def from_environment(cls) -> SenderSettings:
        """Read every group; raises `SettingsError` with one line that names the variable."""
        return cls(
            delivery=read_settings(DeliverySettings),
            webhooks=read_settings(WebhookSettings),
            egress=read_settings(EgressSettings),
            redis=read_settings(RedisSettings),
            log=read_settings(LogSettings),
            metrics=read_settings(MetricsSettings),
            tracing=read_settings(TracingSettings),
        )
