"""`Retry-After` of a full queue is told by how fast it drains."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection

import anyio
import httpx
import pytest
import redis

from service.contract.errors import Overloaded
from service.contract.job import Status
from service.generations.draining import DrainRates
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import Outcome
from service.jobs.connection import connect_async
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.settings.gateway import GatewaySettings
from service.settings.groups import RedisSettings
from service.tenants.records import TenantLimits
from tests.clock import QueueClock
from tests.gateway import SHAPES, gateway_settings, make_key, serving, show_models
from tests.jobs import claim_all, submit

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"


@pytest.fixture
def jobs(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


@pytest.fixture
async def drains(redis_settings: RedisSettings, clock: QueueClock) -> AsyncIterator[DrainRates]:
    async with connect_async(redis_settings) as client:
        yield DrainRates(AsyncJobStore(client, clock=clock), clock=clock.seconds)


def end_one(jobs: JobStore, number: int, *, tenant: str = "ada") -> None:
    submit(jobs, f"gen_{number}", tenant=tenant)
    assert len(claim_all(jobs, 1)) == 1


async def test_pools_and_tenants_have_a_pace_each(jobs: JobStore, clock: QueueClock, drains: DrainRates) -> None:
    assert await drains.retry_after_s("pool", "default") is None
    for number in range(30):
        end_one(jobs, number, tenant="ada" if number % 3 else "bob")
        clock.now_ms += 6_000
    assert await drains.retry_after_s("pool", "default") == 6
    assert await drains.retry_after_s("tenant", "ada") == 9
    assert await drains.retry_after_s("tenant", "bob") == 18
    assert await drains.retry_after_s("tenant", "eve") is None
    assert await drains.retry_after_s("pool", "xl") is None


async def test_every_end_counts_once(
    redis_client: redis.Redis, jobs: JobStore, clock: QueueClock, drains: DrainRates
) -> None:
    for number in range(4):
        submit(jobs, f"gen_{number}")
    jobs.claim("default", "e0", "agent")
    for _ in range(2):
        assert jobs.commit("gen_0", "e0", Outcome(Status.SUCCEEDED)) != "fenced"
        jobs.cancel("ada", "gen_1")
        jobs.erase("ada", "gen_2")
    jobs.claim("default", "e3", "agent")
    assert jobs.release("gen_3", "e3", "drained") is Status.QUEUED
    counted = {name: redis_client.get(name) for name in redis_client.scan_iter("dr:ended:*")}
    slot = str(clock.now_ms // 30_000)
    assert counted == {key("ended", "pool", "default", slot): "3", key("ended", "tenant", "ada", slot): "3"}
    assert {redis_client.ttl(name) for name in counted} <= {629, 630}
    assert await drains.retry_after_s("pool", "default") == 10


async def test_redis_is_asked_once_a_second(jobs: JobStore, clock: QueueClock, drains: DrainRates) -> None:
    for number in range(3):
        end_one(jobs, number)
    assert await drains.retry_after_s("pool", "default") == 10
    for number in range(3, 30):
        end_one(jobs, number)
    clock.now_ms += 999
    assert await drains.retry_after_s("pool", "default") == 10
    clock.now_ms += 1
    assert await drains.retry_after_s("pool", "default") == 1


async def test_damaged_counters_keep_no_job_from_ending(
    redis_client: redis.Redis, jobs: JobStore, clock: QueueClock, drains: DrainRates
) -> None:
    slot = clock.now_ms // 30_000
    redis_client.hset(key("ended", "pool", "default", str(slot)), "a", "hash")
    redis_client.set(key("ended", "tenant", "ada", str(slot)), "nan")
    for back, text in enumerate(("inf", "-7", "1e300", b"\xff", str(2**63)), start=1):
        redis_client.set(key("ended", "pool", "xl", str(slot - back)), text)
    assert await drains.retry_after_s("pool", "default") is None
    # 1e300 and 2^63 are very many; the newest of them lies two whole slots back.
    assert await drains.retry_after_s("pool", "xl") == 60
    end_one(jobs, 1)
    clock.now_ms += 1_000
    assert await drains.retry_after_s("pool", "default") == 30
    assert redis_client.get(key("ended", "tenant", "ada", str(slot))) == "1"


async def test_without_redis_the_pace_is_what_was_known(
    redis_client: redis.Redis, redis_settings: RedisSettings, jobs: JobStore
) -> None:
    end_one(jobs, 1)
    passed = [0.0]
    async with connect_async(redis_settings) as client:
        drains = DrainRates(AsyncJobStore(client, clock=lambda: 1_800_000_000_000), clock=lambda: passed[0])
        assert await drains.retry_after_s("pool", "default") == 30
        redis_client.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")
        try:
            passed[0] = 2.0
            assert await drains.retry_after_s("pool", "default") == 30
            assert await drains.retry_after_s("pool", "other") is None
        finally:
            redis_client.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.fixture
def full(settings: GatewaySettings, redis_client: redis.Redis) -> GatewaySettings:
    show_models(redis_client, SHAPES)
    return gateway_settings(settings.redis, settings.storage, admission={"queue_limit": 2})


def fill(client: redis.Redis, kind: str, name: str, *, times: int = 1) -> None:
    """Have 12 jobs end in each of these slots of time, by Redis' own clock, and in the next: it may begin meanwhile."""
    slot = client.time()[0] // 30
    for back in range(-1, 4):
        client.set(key("ended", kind, name, str(slot - back)), 12 * times)


async def refused(settings: GatewaySettings, api_key: str) -> httpx.Response:
    """Submit to a new gateway until it refuses, 10 s at most: to look at the memory takes it a moment."""
    deadline = time.monotonic() + 10
    async with serving(settings, key=api_key) as api:
        while (response := await api.post(PATH, json={"prompt": "x"})).status_code == 202:
            if time.monotonic() > deadline:
                break
            await anyio.sleep(0.01)
    return response


@pytest.mark.parametrize(("known", "told"), [(False, {"10"}), (True, {"2", "3"})])
async def test_a_full_pool_says_when(
    full: GatewaySettings, redis_client: redis.Redis, known: bool, told: set[str]
) -> None:
    if known:
        # 24 jobs in 30 to 60 s.
        fill(redis_client, "pool", "default")
    fill(redis_client, "tenant", "acme", times=100)
    response = await refused(full, make_key(redis_client))
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert response.headers["retry-after"] in told


@pytest.mark.parametrize(("known", "told"), [(False, {"5"}), (True, {"2", "3"})])
async def test_a_full_tenant_says_when(
    full: GatewaySettings, redis_client: redis.Redis, known: bool, told: set[str]
) -> None:
    if known:
        fill(redis_client, "tenant", "small")
    fill(redis_client, "pool", "default", times=100)
    response = await refused(full, make_key(redis_client, "small", TenantLimits(max_queued=1)))
    assert (response.status_code, response.json()["code"]) == (429, "limit_reached")
    assert response.headers["retry-after"] in told


@pytest.mark.parametrize(("back", "ended", "told"), [(0, 1000, {10}), (3, 1, range(90, 122))])
async def test_full_memory_is_no_sooner_free_for_fast_pools(
    settings: GatewaySettings, redis_client: redis.Redis, back: int, ended: int, told: Collection[int]
) -> None:
    show_models(redis_client, SHAPES)
    slot = redis_client.time()[0] // 30 - back
    redis_client.set(key("ended", "pool", "default", str(slot)), ended)
    redis_client.config_set("maxmemory", redis_client.info("memory")["used_memory"] * 4)
    full = gateway_settings(
        settings.redis, settings.storage, admission={"memory_refuse_ratio": 0.01, "memory_sample_s": 0.05}
    )
    try:
        response = await refused(full, make_key(redis_client))
    finally:
        redis_client.config_set("maxmemory", 0)
    assert response.status_code == 503
    assert response.json()["detail"].startswith("The queue's memory is almost full")
    assert int(response.headers["retry-after"]) in told


def test_a_refusal_without_a_known_pace_has_its_usual_wait() -> None:
    assert Overloaded(retry_after_s=None).retry_after_s == Overloaded().retry_after_s == 10
