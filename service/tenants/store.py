"""Making, listing, changing and removing tenants and keys. Synchronous: the command line's side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import redis
from pydantic import ValidationError
from redis.client import Pipeline

from service.contract.job import Status
from service.jobs.keys import key as jobs_key
from service.jobs.scripts import LIMITS
from service.jobs.store import JobStore
from service.tenants.key_text import hash_secret, new_key
from service.tenants.records import (
    TENANTS_KEY,
    ApiKey,
    Tenant,
    TenantError,
    TenantLimits,
    api_key_key,
    tenant_key,
    tenant_keys_key,
)

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
    """Tenants in Redis. The client must decode responses."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

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
            pipeline.multi()
            pipeline.hset(tenant_key(tenant_id), mapping=tenant.to_hash())
            pipeline.sadd(TENANTS_KEY, tenant_id)
            # What an earlier tenant of this id used, and signed with, is not the new one's to see.
            pipeline.unlink(*_usage_keys(tenant_id), jobs_key("webhook_secrets", tenant_id))

        self._redis.transaction(make, tenant_key(tenant_id))
        return tenant

    def get(self, tenant_id: str) -> Tenant:
        """Return a tenant; raises `TenantError` where there is none."""
        fields = cast("dict[str, str]", self._redis.hgetall(tenant_key(tenant_id)))
        if not fields:
            raise _unknown(tenant_id)
        return Tenant.from_hash(tenant_id, fields)

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
        tenant = self.get(tenant_id).model_copy(update={"limits": limits})
        absent = [field for field, value in limits if value is None]
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hset(tenant_key(tenant_id), mapping=tenant.to_hash())
        if absent:
            pipeline.hdel(tenant_key(tenant_id), *absent)
        pipeline.execute()
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
            for key_id in cast("set[str]", self._redis.smembers(tenant_keys_key(tenant_id))):
                self._redis.hsetnx(api_key_key(key_id), "revoked_ms", str(_now_ms()))
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
            # What is still to be delivered of it is signed as before.
            pipeline.expire(jobs_key("webhook_secrets", tenant_id), _SECRETS_LEFT_S)
            pipeline.srem(TENANTS_KEY, tenant_id)
            removed_keys = len(key_ids)

        watched = (tenant_key(tenant_id), tenant_keys_key(tenant_id), jobs_key("tenant_counts", tenant_id))
        self._redis.transaction(drop, *watched)
        return Removal(removed_keys, canceled)

    def _cancel_all(self, tenant_id: str) -> int:
        jobs, canceled = JobStore(self._redis), 0
        for job_id in cast("list[str]", self._redis.zrange(jobs_key("tenant_jobs", tenant_id), 0, -1)):
            if self._redis.hget(jobs_key("job", job_id), "status") in {Status.QUEUED, Status.RUNNING}:
                jobs.cancel(tenant_id, job_id)
                canceled += 1
        return canceled


class KeyStore:
    """API keys in Redis. The client must decode responses."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def create(self, tenant_id: str, *, label: str = "") -> CreatedKey:
        """Make a key for an existing tenant; raises `TenantError` where there is none."""
        text = new_key()
        key = ApiKey(
            id=text.id, tenant=tenant_id, secret_sha256=hash_secret(text.secret), created_ms=_now_ms(), label=label
        )

        def make(pipeline: Pipeline) -> None:
            if not pipeline.exists(tenant_key(tenant_id)):
                raise _unknown(tenant_id)
            pipeline.multi()
            pipeline.hset(api_key_key(key.id), mapping=key.to_hash())
            pipeline.sadd(tenant_keys_key(tenant_id), key.id)

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

    def revoke(self, key_id: str) -> ApiKey:
        """Make a key open nothing from now on (within two seconds everywhere); again changes nothing."""
        fields = cast("dict[str, str]", self._redis.hgetall(api_key_key(key_id)))
        if not fields:
            msg = "there is no such key; `darkroom keys list` shows their ids"
            raise TenantError(msg)
        self._redis.hsetnx(api_key_key(key_id), "revoked_ms", str(_now_ms()))
        return ApiKey.from_hash(key_id, cast("dict[str, str]", self._redis.hgetall(api_key_key(key_id))))


def _unknown(tenant_id: str) -> TenantError:
    return TenantError(f"there is no tenant {tenant_id[:32]}; `darkroom tenants list` shows them")


def _usage_keys(tenant_id: str) -> list[str]:
    """Return where usage of a tenant may be kept; a day more at both ends, as this clock is not that of Redis."""
    today = _now_ms() // 86_400_000
    kept = LIMITS["usage_ttl_s"] // 86_400
    return [jobs_key("usage", tenant_id, str(day)) for day in range(today - kept - 1, today + 2)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
