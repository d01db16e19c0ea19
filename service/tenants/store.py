"""Making, listing and revoking tenants and keys. Synchronous: the command line's side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import redis
from pydantic import ValidationError

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


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key. `text` is the only copy of its secret: show it once."""

    key: ApiKey
    text: str


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
        if not self._redis.sadd(TENANTS_KEY, tenant_id):
            msg = f"the tenant {tenant_id} exists already"
            raise TenantError(msg)
        self._redis.hset(tenant_key(tenant_id), mapping=tenant.to_hash())
        return tenant

    def get(self, tenant_id: str) -> Tenant:
        """Return a tenant; raises `TenantError` where there is none."""
        fields = cast("dict[str, str]", self._redis.hgetall(tenant_key(tenant_id)))
        if not fields:
            msg = f"there is no tenant {tenant_id[:32]}; `darkroom tenants list` shows them"
            raise TenantError(msg)
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
        return tenant


class KeyStore:
    """API keys in Redis. The client must decode responses."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def create(self, tenant_id: str, *, label: str = "") -> CreatedKey:
        """Make a key for an existing tenant; raises `TenantError` where there is none."""
        TenantStore(self._redis).get(tenant_id)
        text = new_key()
        key = ApiKey(
            id=text.id, tenant=tenant_id, secret_sha256=hash_secret(text.secret), created_ms=_now_ms(), label=label
        )
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hset(api_key_key(key.id), mapping=key.to_hash())
        pipeline.sadd(tenant_keys_key(tenant_id), key.id)
        pipeline.execute()
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
