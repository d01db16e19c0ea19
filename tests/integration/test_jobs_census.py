"""How many jobs wait and run, as gauges show it; against a real Valkey."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import redis
from pydantic import SecretStr

from service.contract.job import Priority
from service.generations.vitals import Vitals
from service.jobs.async_store import AsyncJobStore
from service.jobs.census import PoolCensus, Waiting
from service.jobs.connection import connect_async
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.settings.groups import RedisSettings
from service.storage.s3 import ObjectStorage
from service.telemetry import metric_names
from service.telemetry.gateway_metrics import GatewayMetrics
from tests.clock import QueueClock
from tests.jobs import claim_all, submit
from tests.proxy import Proxy

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


async def census(redis_settings: RedisSettings, clock: QueueClock) -> dict[str, PoolCensus]:
    async with connect_async(redis_settings) as client:
        return {each.pool: each for each in await AsyncJobStore(client, clock=clock).census()}


def waiting(found: PoolCensus) -> dict[Priority, tuple[int, float]]:
    return {priority: (each.jobs, each.oldest_s) for priority, each in found.waiting.items()}


async def test_jobs_are_counted_by_pool_and_priority_with_the_age_of_the_oldest(
    store: JobStore, redis_settings: RedisSettings, clock: QueueClock
) -> None:
    arrivals = [("ada", "normal"), ("bob", "normal"), ("ada", "high"), ("ada", "normal")]
    for number, (tenant, priority) in enumerate(arrivals):
        submit(store, f"gen_{number}", tenant=tenant, priority=priority)
        clock.now_ms += 1000
    submit(store, "gen_other", pool="big")
    clock.now_ms += 500
    found = await census(redis_settings, clock)
    assert waiting(found["default"]) == {"high": (1, 2.5), "normal": (3, 4.5), "low": (0, 0)}
    assert waiting(found["big"]) == {"high": (0, 0), "normal": (1, 0.5), "low": (0, 0)}
    assert [claimed.id for claimed in claim_all(store, 2, commit=False)] == ["gen_2", "gen_0"]
    found = await census(redis_settings, clock)
    assert waiting(found["default"]) == {"high": (0, 0), "normal": (2, 3.5), "low": (0, 0)}
    assert (found["default"].running, found["big"].running) == (2, 0)


async def test_jobs_of_a_tenant_at_its_running_cap_are_counted_too(
    store: JobStore, redis_client: redis.Redis, redis_settings: RedisSettings, clock: QueueClock
) -> None:
    redis_client.hset(key("tenant", "ada"), "max_running", 1)
    for number in range(4):
        submit(store, f"gen_{number}")
    (first,) = claim_all(store, 3, commit=False)
    assert redis_client.smembers(key("held", "default", "normal")) == {"ada"}
    found = await census(redis_settings, clock)
    assert found["default"].waiting["normal"].jobs == 3
    assert first.execution_id
    store.release(first.id, first.execution_id, "drained")
    assert not redis_client.exists(key("held", "default", "normal"))
    assert (await census(redis_settings, clock))["default"].waiting["normal"].jobs == 4


async def test_a_held_queue_that_is_canceled_is_held_no_longer(
    store: JobStore, redis_client: redis.Redis, redis_settings: RedisSettings, clock: QueueClock
) -> None:
    redis_client.hset(key("tenant", "ada"), "max_running", 1)
    for number in range(2):
        submit(store, f"gen_{number}")
    claim_all(store, 2, commit=False)
    store.cancel("ada", "gen_1")
    assert not redis_client.exists(key("held", "default", "normal"))
    assert (await census(redis_settings, clock))["default"].waiting["normal"] == Waiting(0, 0)


async def test_whatever_else_stands_there_is_counted_as_nothing(
    store: JobStore, redis_client: redis.Redis, redis_settings: RedisSettings, clock: QueueClock
) -> None:
    submit(store, "gen_1")
    submit(store, "gen_2", tenant="bob", priority="low")
    redis_client.sadd(key("pools"), "big")
    redis_client.set(key("active", "big", "high"), "no zset")
    redis_client.set(key("pool", "big"), "no hash")
    redis_client.set(key("held", "default", "normal"), "no set")
    redis_client.sadd(key("held", "default", "low"), "nobody", "bo\nb")
    redis_client.delete(key("job", "gen_2"))
    redis_client.sadd(key("pools"), "odd")
    redis_client.hset(key("pool", "odd"), "running", "-nan")
    found = await census(redis_settings, clock)
    assert waiting(found["default"]) == {"high": (0, 0), "normal": (1, 0), "low": (1, 0)}
    assert waiting(found["big"]) == {"high": (0, 0), "normal": (0, 0), "low": (0, 0)}
    assert (found["odd"].running, found["big"].running) == (0, 0)
    assert [job.id for job in claim_all(store, 1)] == ["gen_1"]


async def test_a_census_looks_at_no_more_tenants_than_it_may(
    store: JobStore, redis_client: redis.Redis, redis_settings: RedisSettings, clock: QueueClock
) -> None:
    """A class of more tenants than that is shown with the jobs of the first thousand."""
    redis_client.zadd(key("active", "default", "normal"), {f"tenant{number}": number for number in range(5000)})
    submit(store, "gen_1")
    redis_client.config_resetstat()
    await census(redis_settings, clock)
    calls = redis_client.info("commandstats")["cmdstat_zcard"]["calls"]
    assert calls == 1000


async def test_while_redis_is_away_the_queue_has_no_samples(
    store: JobStore, redis_settings: RedisSettings, storage: ObjectStorage
) -> None:
    submit(store, "gen_1")
    address = urlsplit(redis_settings.url.get_secret_value())
    metrics = GatewayMetrics()

    def shown() -> float | None:
        return metrics.registry.get_sample_value(metric_names.QUEUE_JOBS, {"pool": "default", "priority": "normal"})

    with Proxy(int(address.port or 0)) as proxy, ThreadPoolExecutor(1) as threads:
        url = address._replace(netloc=address.netloc.replace(f":{address.port}", f":{proxy.port}")).geturl()
        async with connect_async(RedisSettings(url=SecretStr(url))) as client:
            vitals = Vitals(metrics=metrics, store=AsyncJobStore(client), storage=storage, threads=threads)
            metrics.watch(vitals)
            await vitals.look()
            assert shown() == 1
            proxy.cut()
            await vitals.look()
            assert shown() is None
            proxy.mend()
            await vitals.look()
            assert shown() == 1
