"""Tenants and keys against a real Valkey: made by the command line's side, checked by the gateway's."""

from __future__ import annotations

import pytest
import redis
from pydantic import SecretStr

from service.contract.errors import DarkroomError, Unauthenticated, Unavailable
from service.contract.job import Status
from service.jobs.commands import Holding, Outcome, SubmitLimits
from service.jobs.connection import connect_async
from service.jobs.store import JobStore
from service.settings.groups import RedisSettings
from service.tenants.authentication import KeyAuthenticator, LocalAuthenticator
from service.tenants.records import TENANTS_KEY, TenantError, TenantLimits, api_key_key, tenant_key
from service.tenants.store import KeyStore, Removal, TenantStore
from tests.clock import Clock
from tests.jobs import make_job

pytestmark = pytest.mark.anyio


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
        look = {"hash": redis_client.hgetall, "set": redis_client.smembers, "stream": redis_client.xrange}[str(kind)]
        everything.append(str(look(name)))
    assert len(everything) == 5
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
    clock = Clock(100)
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


def _submit(jobs: JobStore, tenant: str, job_id: str) -> None:
    submission = jobs.submit(make_job(job_id, tenant=tenant), limits=SubmitLimits(tenant_queued=None, pool_queued=100))
    assert submission.outcome == "created"


def _status(jobs: JobStore, tenant: str, job_id: str) -> Status:
    found = jobs.get(tenant, job_id)
    assert found is not None
    return found.status


def test_a_removed_tenant_leaves_no_key_and_no_record(redis_client: redis.Redis) -> None:
    tenants, keys = TenantStore(redis_client), KeyStore(redis_client)
    tenants.create("acme")
    tenants.create("other")
    kept = keys.create("other")
    created = [keys.create("acme"), keys.create("acme")]
    keys.revoke(created[0].key.id)
    assert tenants.remove("acme") == Removal(keys=2, canceled=0)
    assert set(redis_client.scan_iter("*")) == {
        TENANTS_KEY, tenant_key("other"), "dr:tenant:other:keys", api_key_key(kept.key.id), "dr:audit"
    }  # fmt: skip
    for refused in (lambda: tenants.remove("acme"), lambda: keys.create("acme"), lambda: tenants.get("acme")):
        with pytest.raises(TenantError, match="no tenant acme"):
            refused()


def test_a_tenant_with_work_is_removed_only_by_force(redis_client: redis.Redis) -> None:
    tenants, keys, jobs = TenantStore(redis_client), KeyStore(redis_client), JobStore(redis_client)
    tenants.create("acme")
    keys.create("acme")
    for job_id in ("job-1", "job-2", "job-3"):
        _submit(jobs, "acme", job_id)
    running = jobs.claim("default", "execution-1", "agent-1")
    assert running is not None
    with pytest.raises(TenantError, match=r"2 waiting and 1 running generations.*--force"):
        tenants.remove("acme")
    assert [key.revoked_ms for key in keys.list("acme")] == [None]
    assert tenants.remove("acme", force=True) == Removal(keys=1, canceled=3)
    waiting = {"job-1", "job-2", "job-3"} - {running.id}
    assert {_status(jobs, "acme", job_id) for job_id in waiting} == {Status.CANCELED}
    assert jobs.renew("agent-1", [Holding(running.id, "execution-1")]) == ["cancel"]
    assert jobs.commit(running.id, "execution-1", Outcome(Status.CANCELED)) == "committed"


def test_a_new_tenant_never_sees_what_an_earlier_one_of_its_id_made(redis_client: redis.Redis) -> None:
    tenants, jobs = TenantStore(redis_client), JobStore(redis_client)
    tenants.create("acme")
    _submit(jobs, "acme", "job-1")
    tenants.remove("acme", force=True)
    with pytest.raises(TenantError, match="an earlier tenant acme are still kept"):
        tenants.create("acme")
    jobs.erase("acme", "job-1")
    assert tenants.create("acme").id == "acme"


async def test_a_key_of_a_removed_tenant_opens_nothing(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    tenants, keys = TenantStore(redis_client), KeyStore(redis_client)
    tenants.create("acme")
    created = keys.create("acme")
    tenants.remove("acme")
    async with connect_async(redis_settings) as client:
        for left_behind in (False, True):
            if left_behind:
                redis_client.hset(api_key_key(created.key.id), mapping=created.key.to_hash())
            with pytest.raises(Unauthenticated, match="not valid"):
                await KeyAuthenticator(client, cache_s=2).caller(f"Bearer {created.text}")


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_queued", "many"), ("weight", "nan"), ("top_priority", "root"), ("created_ms", "x")],
)
async def test_a_damaged_tenant_is_named_and_can_be_removed(
    redis_client: redis.Redis, redis_settings: RedisSettings, field: str, value: str
) -> None:
    tenants = TenantStore(redis_client)
    tenants.create("acme")
    created = KeyStore(redis_client).create("acme")
    redis_client.hset(tenant_key("acme"), field, value)
    for look in (tenants.list, lambda: tenants.get("acme")):
        with pytest.raises(TenantError, match=f"dr:tenant:acme in Redis is damaged: see its field {field}"):
            look()
    async with connect_async(redis_settings) as client:
        with pytest.raises(DarkroomError, match="damaged") as caught:
            await KeyAuthenticator(client, cache_s=2).caller(f"Bearer {created.text}")
    assert caught.value.code == "internal"
    assert tenants.remove("acme").keys == 1


@pytest.mark.parametrize(("field", "value"), [("secret_sha256", "é"), ("tenant", "../x"), ("revoked_ms", "soon")])
async def test_a_damaged_key_opens_nothing_and_is_named(
    redis_client: redis.Redis, redis_settings: RedisSettings, field: str, value: str
) -> None:
    TenantStore(redis_client).create("acme")
    created = KeyStore(redis_client).create("acme")
    redis_client.hset(api_key_key(created.key.id), field, value)
    with pytest.raises(TenantError, match=f"see its field {field}"):
        KeyStore(redis_client).list("acme")
    async with connect_async(redis_settings) as client:
        with pytest.raises(DarkroomError, match="damaged"):
            await KeyAuthenticator(client, cache_s=2).caller(f"Bearer {created.text}")
