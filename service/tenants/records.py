"""Tenants and API keys as records, and their form in Redis.

    dr:tenants           set of tenant ids
    dr:tenant:{id}       hash {name, created_ms, weight, max_requests_per_minute, max_gpu_s_per_day, max_queued,
                         max_running, top_priority}; absent = no limit
    dr:tenant:{id}:keys  set of key ids
    dr:tenant:{id}:used  hash key id → the last day on which it opened something (days since 1970, UTC)
    dr:key:{key_id}      hash {tenant, secret_sha256, created_ms, label, scopes, webhook_url, webhook_events,
                         revoked_ms}; no scopes = all of them

The scripts of `service.jobs` read `weight` and the `max_…` from the tenant's hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from redis.typing import EncodableT, FieldT

from service.contract.errors import DarkroomError
from service.contract.events import WebhookEvent
from service.contract.job import PRIORITIES, Priority
from service.contract.rate import MAX_RATE
from service.tenants.scopes import ALL_SCOPES, Scope, scopes_of, scopes_text

#: Everybody on this machine, when keys are switched off.
LOCAL_TENANT = "local"

TENANT_PATTERN = r"^[a-z0-9][a-z0-9-]{0,31}$"

TENANTS_KEY = "dr:tenants"

TenantId = Annotated[str, StringConstraints(pattern=TENANT_PATTERN)]


class TenantError(DarkroomError):
    """A tenant or key cannot be made, changed or found as asked."""

    code = "tenant_error"


class TenantLimits(BaseModel):
    """What one tenant may take of the whole."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: Share of the workers relative to other tenants.
    weight: float = Field(default=1.0, ge=0.01, le=1000)
    #: Jobs accepted in a minute, by all gateways together; None = no limit.
    max_requests_per_minute: int | None = Field(default=None, ge=1, le=MAX_RATE)
    #: GPU seconds of what was drawn on one day, UTC; beyond, nothing new is accepted on that day. None = no limit.
    max_gpu_s_per_day: int | None = Field(default=None, ge=1, le=1_000_000_000)
    #: Jobs waiting at once; None = no limit.
    max_queued: int | None = Field(default=None, ge=0)
    #: Jobs running at once; None = no limit.
    max_running: int | None = Field(default=None, ge=1)
    #: Highest priority class its requests get.
    top_priority: Priority = "high"

    def capped(self, asked: Priority) -> Priority:
        """Return the class that a request for `asked` gets."""
        return PRIORITIES[max(PRIORITIES.index(asked), PRIORITIES.index(self.top_priority))]


class Tenant(BaseModel):
    """Whom jobs, limits and usage belong to. A tenant has any number of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: TenantId
    #: For people; free text.
    name: str = ""
    created_ms: int
    limits: TenantLimits = TenantLimits()

    def to_hash(self) -> Mapping[FieldT, EncodableT]:
        """Return the fields of its hash; limits that are not set have none."""
        limits = self.limits.model_dump(exclude_none=True)
        return {
            "name": self.name,
            "created_ms": str(self.created_ms),
            **{field: str(value) for field, value in limits.items()},
        }

    @classmethod
    def from_hash(cls, tenant_id: str, fields: Mapping[str, str]) -> Tenant:
        """Read what `to_hash` wrote; raises `TenantError` for what it did not."""
        try:
            return cls.model_validate(
                {
                    "id": tenant_id,
                    "name": fields.get("name", ""),
                    "created_ms": fields.get("created_ms", "0"),
                    "limits": {field: fields[field] for field in TenantLimits.model_fields if field in fields},
                }
            )
        except ValidationError as err:
            raise _damaged(tenant_key(tenant_id), err) from err


@dataclass(frozen=True, slots=True)
class DefaultWebhook:
    """Where events go of generations whose request does not say."""

    url: str
    events: tuple[WebhookEvent, ...] = ("completed",)


class ApiKey(BaseModel):
    """A key as stored: the secret itself is nowhere."""

    # Fields of later versions are left alone: the key goes on opening what it opens.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    id: str
    tenant: TenantId
    #: Lower-case hex.
    secret_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    created_ms: int
    #: For people; free text.
    label: str = ""
    #: What it may do; None = everything, also what later versions add.
    scopes: frozenset[Scope] | None = None
    #: See `DefaultWebhook`; None = there is none.
    webhook_url: str | None = None
    webhook_events: tuple[WebhookEvent, ...] | None = None
    #: Since when it opens nothing; None = it is live.
    revoked_ms: int | None = None

    def to_hash(self) -> Mapping[FieldT, EncodableT]:
        """Return the fields of its hash."""
        fields = self.model_dump(exclude={"id", "scopes", "webhook_events"}, exclude_none=True)
        scopes = {} if self.scopes is None else {"scopes": scopes_text(self.scopes)}
        events = {} if self.webhook_events is None else {"webhook_events": " ".join(self.webhook_events)}
        return {**{field: str(value) for field, value in fields.items()}, **scopes, **events}

    @property
    def webhook(self) -> DefaultWebhook | None:
        """Where events go of what it creates, unless the request says."""
        return DefaultWebhook(self.webhook_url, self.webhook_events or ()) if self.webhook_url else None

    @property
    def granted(self) -> frozenset[Scope]:
        """What it may do of what there is."""
        return ALL_SCOPES if self.scopes is None else self.scopes

    @classmethod
    def from_hash(cls, key_id: str, fields: Mapping[str, str]) -> ApiKey:
        """Read what `to_hash` wrote; raises `TenantError` for what it did not."""
        try:
            scopes, events = scopes_of(fields.get("scopes")), _events(fields.get("webhook_events"))
            return cls.model_validate({"id": key_id, **fields, "scopes": scopes, "webhook_events": events})
        except ValidationError as err:
            raise _damaged(api_key_key(key_id), err) from err


def _events(text: str | None) -> tuple[WebhookEvent, ...] | None:
    """Return the events that a record names; those of later versions are left out."""
    return None if text is None else tuple(each for each in get_args(WebhookEvent) if each in text.split())


def _damaged(redis_key: str, err: ValidationError) -> TenantError:
    """Somebody else wrote into our Redis: say where, not what."""
    field = str(err.errors(include_url=False, include_input=False)[0]["loc"][-1])
    return TenantError(f"the record {redis_key} in Redis is damaged: see its field {field[:64]}")


def used_day(text: str) -> date | None:
    """Read a day of `keys_used_key`; None for what is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        return None
    return date(1970, 1, 1) + timedelta(days=int(text))


def tenant_key(tenant_id: str) -> str:
    """Return the Redis key of a tenant's hash."""
    return f"dr:tenant:{tenant_id}"


def tenant_keys_key(tenant_id: str) -> str:
    """Return the Redis key of the set of a tenant's key ids."""
    return f"dr:tenant:{tenant_id}:keys"


def keys_used_key(tenant_id: str) -> str:
    """Return the Redis key of the hash that says when a tenant's keys were used last."""
    return f"dr:tenant:{tenant_id}:used"


def api_key_key(key_id: str) -> str:
    """Return the Redis key of an API key's hash."""
    return f"dr:key:{key_id}"
