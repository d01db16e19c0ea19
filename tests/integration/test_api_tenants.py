"""Tenants and keys against a real Valkey: made by the command line's side, checked by the gateway's."""

from __future__ import annotations

import pytest
import redis
from pydantic import SecretStr

from service.contract.errors import Unauthenticated, Unavailable
from service.jobs.connection import connect_async
from service.settings.groups import RedisSettings
from service.tenants.authentication import KeyAuthenticator, LocalAuthenticator
from service.tenants.records import TenantError, TenantLimits, tenant_key
from service.tenants.store import KeyStore, TenantStore

pytestmark = pytest.mark.anyio


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_tenant_is_made_once(redis_client: redis.Redis) -> None:
    tenants = TenantStore(redis_client)
    made = tenants.create("acme", name="Acme Ltd", limits=TenantLimits(max_queued=5))
    assert tenants.get("acme") == made
    assert tenants.list() == [made]
    with pytest.raises(TenantError, match="exists already"):
        tenants.create("acme")
    with pytest.raises(TenantError, match="1 to 32 characters"):
        tenants.create("No Such Id")
    with pytest.raises(TenantError, match="no tenant"):
        tenants.get("other")


def test_limits_are_stored_where_the_scripts_read_them(redis_client: redis.Redis) -> None:
    tenants = TenantStore(redis_client)
    tenants.create("acme", limits=TenantLimits(weight=2, max_queued=5, max_running=3, top_priority="low"))
    stored = redis_client.hgetall(tenant_key("acme"))
    assert stored.items() >= {"weight": "2.0", "max_queued": "5", "max_running": "3", "top_priority": "low"}.items()
    tenants.set_limits("acme", TenantLimits(max_running=1))
    stored = redis_client.hgetall(tenant_key("acme"))
    assert "max_queued" not in stored
    assert stored["max_running"] == "1"


def test_the_secret_of_a_key_is_nowhere_in_redis(redis_client: redis.Redis) -> None:
    TenantStore(redis_client).create("acme")
    created = KeyStore(redis_client).create("acme", label="backend")
    secret = created.text.rpartition("_")[2]
    everything: list[str] = []
    for name in redis_client.scan_iter("*"):
        kind = redis_client.type(name)
        everything.append(str(redis_client.hgetall(name) if kind == "hash" else redis_client.smembers(name)))
    assert len(everything) == 4
    assert secret not in "".join(everything)


def test_a_key_needs_its_tenant(redis_client: redis.Redis) -> None:
    with pytest.raises(TenantError, match="no tenant"):
        KeyStore(redis_client).create("nobody")


async def test_a_key_opens_its_own_tenant(redis_client: redis.Redis, redis_settings: RedisSettings) -> None:
    TenantStore(redis_client).create("acme", limits=TenantLimits(top_priority="normal"))
    created = KeyStore(redis_client).create("acme")
    async with connect_async(redis_settings) as client:
        caller = await KeyAuthenticator(client, cache_s=2).caller(f"Bearer {created.text}")
        lower = await KeyAuthenticator(client, cache_s=2).caller(f"bearer  {created.text}")
    assert (caller.tenant, caller.key_id, caller.limits.top_priority) == ("acme", created.key.id, "normal")
    assert lower == caller


async def test_wrong_keys_are_all_refused_alike(redis_client: redis.Redis, redis_settings: RedisSettings) -> None:
    TenantStore(redis_client).create("acme")
    keys = KeyStore(redis_client)
    one, two = keys.create("acme"), keys.create("acme")
    mixed = f"dk_{one.key.id}_{two.text.rpartition('_')[2]}"
    unknown = "dk_" + "a" * 12 + "_" + "b" * 32
    messages = set()
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(client, cache_s=2)
        for text in (mixed, unknown, "nonsense", one.text + "x", one.text[:-1]):
            with pytest.raises(Unauthenticated) as caught:
                await authenticator.caller(f"Bearer {text}")
            messages.add(caught.value.message)
        for header in (None, "", f"Basic {one.text}"):
            with pytest.raises(Unauthenticated):
                await authenticator.caller(header)
    assert len(messages) == 1


async def test_a_revoked_key_stops_within_the_cache_time(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    TenantStore(redis_client).create("acme")
    keys = KeyStore(redis_client)
    created = keys.create("acme")
    clock = Clock()
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(client, cache_s=2, clock=clock)
        await authenticator.caller(f"Bearer {created.text}")
        revoked = keys.revoke(created.key.id)
        assert keys.revoke(created.key.id) == revoked
        clock.now_s += 1.9
        await authenticator.caller(f"Bearer {created.text}")
        clock.now_s += 0.2
        with pytest.raises(Unauthenticated, match="revoked"):
            await authenticator.caller(f"Bearer {created.text}")
    assert [key.revoked_ms for key in keys.list("acme")] == [revoked.revoked_ms]
    with pytest.raises(TenantError, match="no such key"):
        keys.revoke("unknown")


async def test_without_redis_a_key_cannot_be_checked() -> None:
    async with connect_async(RedisSettings(url=SecretStr("redis://127.0.0.1:1/0"))) as client:
        with pytest.raises(Unavailable):
            await KeyAuthenticator(client, cache_s=2).caller("Bearer dk_" + "a" * 12 + "_" + "b" * 32)


async def test_with_keys_switched_off_everybody_is_local() -> None:
    assert (await LocalAuthenticator().caller(None)).tenant == "local"
