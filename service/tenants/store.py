"""Making, listing, changing and removing tenants and keys. Synchronous: the command line's side.

Every change is noted in the audit log (`service.tenants.audit`) by the transaction that makes it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import date
from typing import cast

import redis
from pydantic import ValidationError
from redis.client import Pipeline

from service.contract.job import Status
from service.jobs.keys import key as jobs_key
from service.jobs.scripts import LIMITS
from service.jobs.store import JobStore
from service.tenants import audit
from service.tenants.key_text import hash_secret, new_key
from service.tenants.records import (
    TENANTS_KEY,
    ApiKey,
    DefaultWebhook,
    Tenant,
    TenantError,
    TenantLimits,
    api_key_key,
    keys_used_key,
    tenant_key,
    tenant_keys_key,
    used_day,
)
from service.tenants.scopes import Scope, scopes_text

#: s; a removed tenant's webhook secrets outlast every attempt to deliver what is left of it.
_SECRETS_LEFT_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key. `text` is the only copy of its secret: show it once."""

    key: ApiKey
    text: str


@dataclass(frozen=True, slots=True)
class Removal:
    """What went with a tenant."""

    keys: int
    #: Jobs that were waiting or running, and now end as canceled.
    canceled: int


class TenantStore:
    """Tenants in Redis. The client must decode responses; `who` is noted with every change."""

    def __init__(self, client: redis.Redis, *, who: str | None = None) -> None:
        self._redis = client
        self._who = who or audit.operator()

    def create(self, tenant_id: str, *, name: str = "", limits: TenantLimits | None = None) -> Tenant:
        """Make a tenant; raises `TenantError` where the id is malformed or taken."""
        try:
            tenant = Tenant(id=tenant_id, name=name, created_ms=_now_ms(), limits=limits or TenantLimits())
        except ValidationError:
            msg = "a tenant's id has 1 to 32 characters of a-z, 0-9 and -, and does not begin with -"
            raise TenantError(msg) from None

        def make(pipeline: Pipeline) -> None:
            if pipeline.exists(tenant_key(tenant_id)):
                msg = f"the tenant {tenant_id} exists already"
                raise TenantError(msg)
            if pipeline.exists(jobs_key("tenant_jobs", tenant_id)):
                msg = (
                    f"generations of an earlier tenant {tenant_id} are still kept, and the new one would see them; "
                    "take another id, or wait until their retention is over"
                )
                raise TenantError(msg)
            endpoints = _endpoint_keys(tenant_id, pipeline)
            pipeline.multi()
            pipeline.hset(tenant_key(tenant_id), mapping=tenant.to_hash())
            pipeline.sadd(TENANTS_KEY, tenant_id)
            # What an earlier tenant of this id used, called, and signed with, is not the new one's to see.
            pipeline.unlink(*_usage_keys(tenant_id), keys_used_key(tenant_id), jobs_key("webhook_secrets", tenant_id))
            pipeline.unlink(*endpoints)
            given = {"name": name} if name else {}
            changes = {**given, **_changes(TenantLimits(), tenant.limits)}
            audit.note(pipeline, "tenant_created", who=self._who, tenant=tenant_id, changes=changes)

        self._redis.transaction(make, tenant_key(tenant_id))
        return tenant

    def get(self, tenant_id: str) -> Tenant:
        """Return a tenant; raises `TenantError` where there is none."""
        return Tenant.from_hash(tenant_id, self._fields(tenant_id, self._redis))

    def list(self) -> list[Tenant]:
        """Return every tenant by id."""
        ids = cast("set[str]", self._redis.smembers(TENANTS_KEY))
        pipeline = self._redis.pipeline(transaction=False)
        for tenant_id in sorted(ids):
            pipeline.hgetall(tenant_key(tenant_id))
        found = zip(sorted(ids), cast("list[dict[str, str]]", pipeline.execute()), strict=True)
        return [Tenant.from_hash(tenant_id, fields) for tenant_id, fields in found if fields]

    def set_limits(self, tenant_id: str, limits: TenantLimits) -> Tenant:
        """Replace a tenant's limits; running gateways follow within two seconds."""
        absent = [field for field, value in limits if value is None]

        def change(pipeline: Pipeline) -> None:
            nonlocal tenant
            before = Tenant.from_hash(tenant_id, self._fields(tenant_id, pipeline))
            tenant = before.model_copy(update={"limits": limits})
            pipeline.multi()
            pipeline.hset(tenant_key(tenant_id), mapping=tenant.to_hash())
            if absent:
                pipeline.hdel(tenant_key(tenant_id), *absent)
            if changes := _changes(before.limits, limits):
                audit.note(pipeline, "limits_changed", who=self._who, tenant=tenant_id, changes=changes)

        tenant = self.get(tenant_id)
        self._redis.transaction(change, tenant_key(tenant_id))
        JobStore(self._redis).unhold(tenant_id)
        return tenant

    def remove(self, tenant_id: str, *, force: bool = False) -> Removal:
        """Remove a tenant with its keys; running gateways follow within two seconds.

        Raises `TenantError` where there is none, and while jobs of it wait or run, unless `force` says to cancel them.
        What has ended stays until its retention is over, out of everyone's reach. Broken off, it may be repeated.
        """
        removed_keys = canceled = 0
        if force:
            # Keys first, so that nothing new comes after what is canceled.
            keys = KeyStore(self._redis, who=self._who)
            for key_id in cast("set[str]", self._redis.smembers(tenant_keys_key(tenant_id))):
                keys.shut(tenant_id, key_id)
            canceled = self._cancel_all(tenant_id)

        def drop(pipeline: Pipeline) -> None:
            nonlocal removed_keys
            if not pipeline.exists(tenant_key(tenant_id)):
                raise _unknown(tenant_id)
            counts = cast("dict[str, str]", pipeline.hgetall(jobs_key("tenant_counts", tenant_id)))
            queued, running = (int(counts.get(name, "0")) for name in ("queued", "running"))
            if (queued or running) and not force:
                msg = (
                    f"the tenant {tenant_id} has {queued} waiting and {running} running generations; "
                    "wait for their end, or cancel them with --force"
                )
                raise TenantError(msg)
            key_ids = cast("set[str]", pipeline.smembers(tenant_keys_key(tenant_id)))
            pipeline.multi()
            pipeline.delete(tenant_key(tenant_id), tenant_keys_key(tenant_id), *map(api_key_key, key_ids))
            pipeline.delete(keys_used_key(tenant_id))
            # What is still to be delivered of it is signed as before.
            pipeline.expire(jobs_key("webhook_secrets", tenant_id), _SECRETS_LEFT_S)
            pipeline.srem(TENANTS_KEY, tenant_id)
            removed_keys = len(key_ids)
            gone = {"keys": removed_keys, "canceled": canceled}
            audit.note(pipeline, "tenant_removed", who=self._who, tenant=tenant_id, changes=gone)

        watched = (tenant_key(tenant_id), tenant_keys_key(tenant_id), jobs_key("tenant_counts", tenant_id))
        self._redis.transaction(drop, *watched)
        return Removal(removed_keys, canceled)

    def _fields(self, tenant_id: str, client: redis.Redis | Pipeline) -> dict[str, str]:
        fields = cast("dict[str, str]", client.hgetall(tenant_key(tenant_id)))
        if not fields:
            raise _unknown(tenant_id)
        return fields

    def _cancel_all(self, tenant_id: str) -> int:
        jobs, canceled = JobStore(self._redis), 0
        for job_id in cast("list[str]", self._redis.zrange(jobs_key("tenant_jobs", tenant_id), 0, -1)):
            if self._redis.hget(jobs_key("job", job_id), "status") in {Status.QUEUED, Status.RUNNING}:
                jobs.cancel(tenant_id, job_id)
                canceled += 1
        return canceled


class KeyStore:
    """API keys in Redis. The client must decode responses; `who` is noted with every change."""

    def __init__(self, client: redis.Redis, *, who: str | None = None) -> None:
        self._redis = client
        self._who = who or audit.operator()

    def create(
        self,
        tenant_id: str,
        *,
        label: str = "",
        scopes: frozenset[Scope] | None = None,
        webhook: DefaultWebhook | None = None,
    ) -> CreatedKey:
        """Make a key for a tenant, with all scopes where none are given; raises `TenantError` where there is none."""
        text = new_key()
        key = ApiKey(
            id=text.id,
            tenant=tenant_id,
            secret_sha256=hash_secret(text.secret),
            created_ms=_now_ms(),
            label=label,
            scopes=scopes,
            webhook_url=webhook and webhook.url,
            webhook_events=webhook and webhook.events,
        )

        def make(pipeline: Pipeline) -> None:
            if not pipeline.exists(tenant_key(tenant_id)):
                raise _unknown(tenant_id)
            pipeline.multi()
            pipeline.hset(api_key_key(key.id), mapping=key.to_hash())
            pipeline.sadd(tenant_keys_key(tenant_id), key.id)
            # A URL may have a secret in it.
            changes = {"label": label, "scopes": _told(scopes), **({"webhook": True} if webhook else {})}
            audit.note(pipeline, "key_created", who=self._who, tenant=tenant_id, key=key.id, changes=changes)

        self._redis.transaction(make, tenant_key(tenant_id))
        return CreatedKey(key, str(text))

    def list(self, tenant_id: str) -> list[ApiKey]:
        """Return a tenant's keys, oldest first, revoked ones too."""
        ids = sorted(cast("set[str]", self._redis.smembers(tenant_keys_key(tenant_id))))
        pipeline = self._redis.pipeline(transaction=False)
        for key_id in ids:
            pipeline.hgetall(api_key_key(key_id))
        found = zip(ids, cast("list[dict[str, str]]", pipeline.execute()), strict=True)
        keys = [ApiKey.from_hash(key_id, fields) for key_id, fields in found if fields]
        return sorted(keys, key=lambda key: (key.created_ms, key.id))

    def used(self, tenant_id: str) -> dict[str, date]:
        """Return the last day, UTC, on which each key opened something; one that never did is not there."""
        days = cast("dict[str, str]", self._redis.hgetall(keys_used_key(tenant_id)))
        return {key_id: day for key_id, text in days.items() if (day := used_day(text)) is not None}

    def revoke(self, key_id: str) -> ApiKey:
        """Make a key open nothing from now on (within two seconds everywhere); again changes nothing."""
        key = self._get(key_id)
        self.shut(key.tenant, key_id)
        return self._get(key_id)

    def shut(self, tenant_id: str, key_id: str) -> None:
        """Revoke a key of this tenant whose record may be damaged."""

        def change(pipeline: Pipeline) -> None:
            known, revoked = cast("list[str | None]", pipeline.hmget(api_key_key(key_id), "tenant", "revoked_ms"))
            pipeline.multi()
            if known is not None and revoked is None:
                pipeline.hset(api_key_key(key_id), "revoked_ms", str(_now_ms()))
                audit.note(pipeline, "key_revoked", who=self._who, tenant=tenant_id, key=key_id)

        self._redis.transaction(change, api_key_key(key_id))

    def set_scopes(self, key_id: str, scopes: frozenset[Scope] | None) -> ApiKey:
        """Give a key these scopes, None = all; gateways follow within two seconds. Raises `TenantError`."""

        def change(pipeline: Pipeline) -> None:
            before = self._get(key_id, pipeline)
            pipeline.multi()
            if scopes is None:
                pipeline.hdel(api_key_key(key_id), "scopes")
            else:
                pipeline.hset(api_key_key(key_id), "scopes", scopes_text(scopes))
            if before.scopes != scopes:
                changes = {"scopes": [_told(before.scopes), _told(scopes)]}
                audit.note(pipeline, "scopes_changed", who=self._who, tenant=before.tenant, key=key_id, changes=changes)

        self._redis.transaction(change, api_key_key(key_id))
        return self._get(key_id)

    def _get(self, key_id: str, client: redis.Redis | Pipeline | None = None) -> ApiKey:
        fields = cast("dict[str, str]", (client or self._redis).hgetall(api_key_key(key_id)))
        if not fields:
            msg = "there is no such key; `darkroom keys list` shows their ids"
            raise TenantError(msg)
        return ApiKey.from_hash(key_id, fields)


def _told(scopes: frozenset[Scope] | None) -> str:
    """Return scopes as the audit log has them."""
    return "all" if scopes is None else scopes_text(scopes)


def _changes(before: TenantLimits, after: TenantLimits) -> dict[str, object]:
    """Return what differs, by name."""
    was, now = before.model_dump(), after.model_dump()
    return {field: [was[field], now[field]] for field in now if was[field] != now[field]}


def _unknown(tenant_id: str) -> TenantError:
    return TenantError(f"there is no tenant {tenant_id[:32]}; `darkroom tenants list` shows them")


def _endpoint_keys(tenant_id: str, client: redis.Redis | Pipeline) -> list[str]:
    """Return where the webhook endpoints of a tenant are kept; no event of it is left."""
    index = jobs_key("tenant_endpoints", tenant_id)
    endpoints = cast("list[str]", client.zrange(index, 0, -1))
    return [index, jobs_key("tenant_deliveries", tenant_id), *(jobs_key("endpoint", each) for each in endpoints)]


def _usage_keys(tenant_id: str) -> list[str]:
    """Return where usage of a tenant may be kept; a day more at both ends, as this clock is not that of Redis."""
    today = _now_ms() // 86_400_000
    kept = LIMITS["usage_ttl_s"] // 86_400
    return [jobs_key("usage", tenant_id, str(day)) for day in range(today - kept - 1, today + 2)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
