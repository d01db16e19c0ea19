"""Settings of the gateway process, in groups. Below the composition root nobody sees more than a group."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.settings.egress import EgressSettings, FetchSettings
from service.settings.groups import LogSettings, RedisSettings, StorageSettings, WebhookSettings
from service.settings.reading import SettingsError, read_settings
from service.settings.telemetry import MetricsSettings, TracingSettings
from service.settings.uploads import UploadSettings

MIB = 1 << 20
DAY_S = 86_400


class HttpSettings(BaseSettings):
    """The listening socket, and what one request may cost."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_ignore_empty=True, frozen=True, populate_by_name=True)

    #: Address to listen on. Loopback, so that nothing is public by accident; in a container set `0.0.0.0`.
    host: str = "127.0.0.1"
    #: TCP port; 0 takes a free one. 8000, where people look first.
    port: int = Field(default=8000, ge=0, le=65535, validation_alias=AliasChoices("DARKROOM_PORT", "PORT"))
    #: Bytes of one request body. 25 MiB hold two inline pictures of 9 MB each as base64.
    body_limit_bytes: int = Field(default=25 * MIB, ge=64 * 1024, le=256 * MIB)
    #: Bytes of request bodies held at once in this process; beyond, 503. Twenty of the largest.
    body_budget_bytes: int = Field(default=512 * MIB, ge=MIB)
    #: s for a whole body to arrive; a client that trickles is let go.
    body_timeout_s: float = Field(default=30.0, gt=0, le=600)
    #: s, the longest that `Prefer: wait` is honoured. 60, below the idle limit of usual load balancers.
    wait_cap_s: int = Field(default=60, ge=1, le=600)
    #: Streams of events open at once in this process; beyond, 503. Each looks at its job every 5 s: 200 reads a second.
    stream_limit: int = Field(default=1000, ge=1, le=100_000)
    #: Of them, those of one tenant; beyond, 429. Half, so that no tenant takes all.
    tenant_stream_limit: int = Field(default=500, ge=1, le=100_000)
    #: Calls of one tenant that this process holds at once for `Prefer: wait`, or for a picture; beyond, 429.
    tenant_wait_limit: int = Field(default=2000, ge=1, le=100_000)
    #: s without an event until a stream sends a comment. 15, below the idle limit of any usual proxy.
    stream_heartbeat_s: float = Field(default=15.0, gt=0, le=600)
    #: s, the longest life of a stream; its caller comes again by itself, perhaps to another gateway.
    stream_cap_s: float = Field(default=3600.0, gt=0, le=86_400)
    #: s an idle connection is kept. Above the 60 s of usual load balancers, so that they close first.
    keep_alive_s: int = Field(default=75, ge=1, le=3600)
    #: s for open requests to finish after SIGTERM; waits are answered, and streams ended, at once.
    shutdown_grace_s: int = Field(default=10, ge=1, le=600)
    #: Addresses or networks of proxies whose `X-Forwarded-For` is believed, separated by commas; empty = nobody's. Who
    #: calls is then the right-most entry that is no such proxy: what stands left of it, anybody may have written.
    trusted_proxies: str = ""

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, proxies: str) -> str:
        try:
            for each in filter(None, map(str.strip, proxies.split(","))):
                ipaddress.ip_network(each)
        except ValueError:
            msg = "must be addresses or networks, separated by commas, such as 10.0.0.7,172.30.84.0/24"
            raise ValueError(msg) from None
        return ",".join(filter(None, map(str.strip, proxies.split(","))))


class AuthSettings(BaseSettings):
    """Who may call."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_ignore_empty=True, frozen=True, populate_by_name=True)

    #: `keys` = a bearer key on every call; `none` = everybody on this machine is the tenant `local`.
    auth: Literal["keys", "none"] = Field(default="keys", validation_alias=AliasChoices("DARKROOM_AUTH", "AUTH"))
    #: s that a looked-up key is trusted without asking Redis: how long a revoked key may still work. At most 2.
    key_cache_s: float = Field(default=2.0, ge=0, le=2)
    #: Calls with a wrong key that one address (a /64 of IPv6) may make in a minute; beyond, 429. Who mistypes needs a
    #: few, many machines behind one address some more.
    auth_failures_per_minute: int = Field(default=60, ge=1, le=100_000)


class AdmissionSettings(BaseSettings):
    """What is taken into the queue, and how long records live."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_ignore_empty=True, frozen=True)

    #: Jobs waiting in one pool; beyond, 503. Hours of work for one GPU, and some 40 MB of Redis.
    queue_limit: int = Field(default=10_000, ge=1)
    #: Part of Redis' maxmemory from which on submits get 503, so that claims and commits always fit.
    memory_refuse_ratio: float = Field(default=0.8, gt=0, le=1)
    #: s between two looks at Redis' memory, and reaper passes; a second of submits is far less than a fifth of it. At
    #: most 4: from 5 on a gateway that looks so seldom counts as having been away, and takes no lease back.
    memory_sample_s: float = Field(default=1.0, gt=0, le=4)
    #: s that the list of models is kept; how long a new model may stay unseen.
    models_cache_s: float = Field(default=1.0, ge=0, le=60)
    #: s that records and pictures are kept after a job's end where the request does not say: a week.
    retain_s: int = Field(default=7 * DAY_S, ge=60)
    #: s, the longest `retain_s` that a request may ask for.
    retain_max_s: int = Field(default=30 * DAY_S, ge=60)
    #: Bytes of one input picture, decoded from base64.
    input_limit_bytes: int = Field(default=16 * MIB, ge=1024)
    #: px of the longer side of an input picture.
    input_side_px: int = Field(default=8192, ge=64, le=16384)
    #: px² of an input picture: 4096 × 4096.
    input_pixels: int = Field(default=4096 * 4096, ge=64 * 64)

    @model_validator(mode="after")
    def _default_within_longest(self) -> AdmissionSettings:
        if self.retain_s > self.retain_max_s:
            msg = "DARKROOM_RETAIN_S: must not be more than DARKROOM_RETAIN_MAX_S"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Everything the gateway reads from its environment."""

    http: HttpSettings
    auth: AuthSettings
    admission: AdmissionSettings
    uploads: UploadSettings
    redis: RedisSettings
    storage: StorageSettings
    webhooks: WebhookSettings
    log: LogSettings
    metrics: MetricsSettings
    egress: EgressSettings
    fetch: FetchSettings
    tracing: TracingSettings

    def __post_init__(self) -> None:
        if self.auth.auth == "none" and not is_loopback(self.http.host):
            raise SettingsError(
                "AUTH: `none` is accepted on a loopback address only; "
                "set DARKROOM_HOST to 127.0.0.1, or AUTH to keys and create one with `darkroom keys create`"
            )
        if self.fetch.budget_bytes < self.admission.input_limit_bytes:
            msg = "DARKROOM_FETCH_BUDGET_BYTES: must not be less than DARKROOM_INPUT_LIMIT_BYTES"
            raise SettingsError(msg)

    @classmethod
    def from_environment(cls) -> GatewaySettings:
        """Read every group; raises `SettingsError` with one line that names the variable."""
        return cls(
            http=read_settings(HttpSettings),
            auth=read_settings(AuthSettings),
            admission=read_settings(AdmissionSettings),
            uploads=read_settings(UploadSettings),
            redis=read_settings(RedisSettings),
            storage=read_settings(StorageSettings),
            webhooks=read_settings(WebhookSettings),
            log=read_settings(LogSettings),
            metrics=read_settings(MetricsSettings),
            egress=read_settings(EgressSettings),
            fetch=read_settings(FetchSettings),
            tracing=read_settings(TracingSettings),
        )


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Tell whether a host name or address can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
