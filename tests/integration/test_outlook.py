"""What lies ahead, by a real queue: who is next, who looks, and what it costs with a hundred thousand jobs."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import redis
import redis.asyncio

from service.contract.forecast import Forecast
from service.contract.job import PRIORITIES, Job
from service.contract.worker import WorkerRecord
from service.generations.models import ModelDirectory
from service.generations.outlook.costs import CostBook
from service.generations.outlook.forecaster import Forecaster
from service.generations.outlook.reading import Outlooks
from service.jobs.async_store import AsyncJobStore
from service.jobs.forecasts import ForecastStore
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.settings.groups import RedisSettings
from tests.clock import Clock, QueueClock
from tests.costs import cost
from tests.gateway import SHAPES
from tests.jobs import claim_all, make_job, submit

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


@pytest.fixture
async def client(redis_settings: RedisSettings) -> AsyncIterator[redis.asyncio.Redis]:
    url = redis_settings.url.get_secret_value()
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as connected:
        yield connected


class Seer:
    """One process that looks ahead when it is told to."""

    def __init__(self, client: redis.asyncio.Redis, clock: QueueClock, name: str = "one") -> None:
        store = AsyncJobStore(client, clock=clock)
        self.local = Clock()
        self.outlooks = Outlooks(clock=self.local)
        self.store = ForecastStore(client, clock=clock)
        models = ModelDirectory(store, cache_s=0, clock=self.local)
        costs = CostBook(store, clock=self.local)
        self._forecaster = Forecaster(store=self.store, models=models, costs=costs, outlooks=self.outlooks, holder=name)

    async def look(self) -> Forecast | None:
        await self._forecaster.round()
        return self.outlooks.forecast


def work_with(store: JobStore, *, capacity: int = 1, agents: int = 1, models: tuple[str, ...] = ("tiny",)) -> None:
    """Let workers live that draw these models; calls of the model `tiny` take 5 ms a row."""
    cards = [SHAPES.model_copy(update={"id": model}) for model in models]
    for number in range(agents):
        record = WorkerRecord(
            agent_id=f"agent{number}", pool="default", device_name="A device", warm=models, capacity=capacity
        )
        store.announce(record, cards, ttl_ms=600_000)
    store.keep_costs("A device", [cost(2, 0.010, model="tiny", sha256="0" * 12)])


def crowd(store: JobStore, redis_client: redis.Redis, seed: int, *, jobs: int = 60) -> list[Job]:
    """Queue jobs of several tenants, weights and priorities, some of which have been served before."""
    drawn = random.Random(seed)
    tenants = ["ada", "bob", "eve", "joe"]
    for tenant in tenants:
        redis_client.hset(key("tenant", tenant), "weight", drawn.choice([1, 1, 2, 0.5]))
    found: list[Job] = []
    for number in range(jobs):
        tenant, priority = drawn.choice(tenants), drawn.choice(PRIORITIES)
        found.append(submit(store, f"gen_{number}", tenant=tenant, priority=priority, cost=drawn.choice([4, 8, 40])))
        if number == jobs // 3:
            claim_all(store, drawn.randrange(jobs // 4))
    return found


@pytest.mark.parametrize("seed", range(6))
async def test_jobs_are_claimed_in_the_order_of_their_places(
    client: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, clock: QueueClock, seed: int
) -> None:
    work_with(store)
    jobs = {job.id: job for job in crowd(store, redis_client, seed)}
    seer = Seer(client, clock)
    await seer.look()
    waiting = {
        job_id: outlook.position
        for job_id, job in jobs.items()
        if (now := store.get(job.tenant, job_id)) and not now.ended and (outlook := seer.outlooks.of(now))
    }
    order = [job.id for job in claim_all(store, 100)]
    assert [waiting[job_id] for job_id in order] == list(range(1, len(order) + 1))


async def test_a_tenant_at_its_cap_is_expected_when_one_of_its_own_ends(
    client: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    work_with(store, capacity=4)
    redis_client.hset(key("tenant", "ada"), "max_running", 1)
    spec = make_job("x").spec.model_copy(update={"steps": 100})
    for number in range(3):
        submit(store, f"gen_a{number}", spec=spec)
    submit(store, "gen_b", tenant="bob", spec=spec)
    claimed = [store.claim("default", f"e{number}", "agent0") for number in range(2)]
    assert [job and job.id for job in claimed] == ["gen_a0", "gen_b"]
    # Ada is held back by now.
    assert store.claim("default", "e3", "agent0") is None
    seer = Seer(client, clock)
    await seer.look()
    second, third = (seer.outlooks.of(submitted(store, f"gen_a{number}")) for number in (1, 2))
    assert second
    assert third
    assert (second.position, third.position) == (1, 2)
    # Two jobs of 100 steps share calls of 20 ms; then another two begin, of which only one is there.
    assert second.start_s == pytest.approx(2.0, abs=0.1)
    assert third.start_s == pytest.approx(3.0, abs=0.1)


def submitted(store: JobStore, job_id: str, tenant: str = "ada") -> Job:
    job = store.get(tenant, job_id)
    assert job
    return job


async def test_starts_and_ends_are_told_by_what_calls_cost(
    client: redis.asyncio.Redis, store: JobStore, clock: QueueClock
) -> None:
    """100 steps of 10 ms each, one job after the other."""
    work_with(store)
    spec = make_job("x").spec.model_copy(update={"steps": 100})
    for number in range(3):
        submit(store, f"gen_{number}", spec=spec)
    running = store.claim("default", "e", "agent0")
    assert running
    seer = Seer(client, clock)
    await seer.look()
    first = seer.outlooks.of(running)
    second, third = (seer.outlooks.of(submitted(store, f"gen_{number}")) for number in (1, 2))
    assert first
    assert second
    assert third
    assert (first.position, first.start_s, first.finish_s) == (None, None, pytest.approx(1.0, abs=0.1))
    assert (second.position, third.position) == (1, 2)
    assert (second.start_s, second.finish_s) == (pytest.approx(1.0, abs=0.1), pytest.approx(2.0, abs=0.1))
    assert (third.start_s, third.finish_s) == (pytest.approx(2.0, abs=0.1), pytest.approx(3.0, abs=0.1))
    seer.local.now_s += 0.5
    later = seer.outlooks.of(submitted(store, "gen_1"))
    assert later
    assert later.start_s == pytest.approx(0.5, abs=0.1)


async def test_jobs_that_came_since_stand_behind_those_of_their_tenant(
    client: redis.asyncio.Redis, store: JobStore, clock: QueueClock
) -> None:
    work_with(store)
    for number in range(3):
        submit(store, f"gen_{number}")
    seer = Seer(client, clock)
    await seer.look()
    places: list[int | None] = []
    for number in range(3, 6):
        submit(store, f"gen_{number}")
        outlook = seer.outlooks.of(submitted(store, f"gen_{number}"))
        places.append(outlook and outlook.position)
    assert places == [4, 5, 6]
    # Another tenant's first one shares with them from the start.
    submit(store, "gen_b", tenant="bob")
    bob = seer.outlooks.of(submitted(store, "gen_b", "bob"))
    assert bob
    assert bob.position in {1, 2}


async def test_one_looks_for_all_until_it_falls_silent(
    client: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    work_with(store)
    submit(store, "gen_1")
    one, other = Seer(client, clock, "one"), Seer(client, clock, "other")
    made = await one.look()
    assert made
    assert await other.look() == made
    assert redis_client.get(key("forecaster")) == "one"
    submit(store, "gen_2")
    # It reads what was made, and makes none.
    assert await other.look() == made
    await one.store.withdraw("one")
    newer = await other.look()
    assert newer
    assert "gen_2" in newer.pools["default"].next
    assert redis_client.get(key("forecaster")) == "other"
    # One that was stopped for a while finds another in its place, and publishes nothing.
    assert not await one.store.publish("one", "{}")
    assert await one.look() == newer


@pytest.mark.parametrize("text", ["", "no JSON", "{}", '{"made_ms": -1, "pools": {}}', "[" * 5000, "x" * (1 << 21)])
async def test_a_forecast_that_somebody_else_wrote_is_none(
    client: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, clock: QueueClock, text: str
) -> None:
    submit(store, "gen_1")
    redis_client.set(key("forecaster"), "somebody", px=60_000)
    redis_client.set(key("forecast"), text)
    seer = Seer(client, clock)
    assert await seer.look() is None
    outlook = seer.outlooks.of(submitted(store, "gen_1"))
    assert outlook
    assert (outlook.position, outlook.start_s, outlook.finish_s) == (None, None, None)


async def test_a_lead_without_an_end_is_taken_over(
    client: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    work_with(store)
    redis_client.set(key("forecaster"), "somebody")
    assert await Seer(client, clock, "one").look()
    assert redis_client.get(key("forecaster")) == "one"


async def test_a_forecast_is_forgotten_when_it_is_old(
    client: redis.asyncio.Redis, store: JobStore, clock: QueueClock
) -> None:
    work_with(store)
    seer = Seer(client, clock)
    assert await seer.look()
    seer.local.now_s += 4.9
    assert seer.outlooks.forecast
    seer.local.now_s += 0.2
    assert seer.outlooks.forecast is None


async def test_damage_in_redis_stops_no_look(
    client: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    work_with(store)
    for number in range(4):
        submit(store, f"gen_{number}")
    submit(store, "gen_b", tenant="bob")
    claim_all(store, 1, commit=False)
    redis_client.hset(key("job", "gen_1"), "spec", "{")
    redis_client.hset(key("job", "gen_2"), "cost", "nan")
    redis_client.delete(key("job", "gen_3"))
    redis_client.set(key("job", "gen_3"), "no hash")
    redis_client.hset(key("tenant", "ada"), mapping={"weight": "inf", "max_running": "many"})
    redis_client.delete(key("tenant_counts", "ada"))
    redis_client.set(key("tenant_counts", "ada"), "no hash")
    redis_client.hset(key("pool", "default"), mapping={"passed_low": "nan", "vtime_normal": "-1e400", "sequence": "x"})
    redis_client.set(key("agent", "agent0x"), "{}")
    redis_client.zadd(key("agents"), {"agent0x": 1e15})
    redis_client.zadd(key("leases"), {"gen_none": 1, "gen_3": 2})
    redis_client.sadd(key("pools"), "other")
    redis_client.set(key("active", "other", "low"), "no set")
    for name in ("forecaster", "forecast"):
        redis_client.sadd(key(name), "no string")
    seer = Seer(client, clock)
    forecast = await seer.look()
    assert forecast
    outlook = seer.outlooks.of(submitted(store, "gen_b", "bob"))
    assert outlook
    assert outlook.position is not None


async def test_a_deep_queue_is_told_in_few_words_and_places_are_near_the_truth(
    client: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    """20 000 jobs of 40 tenants, made as the script leaves them; a place is off by some hundredths of the queue."""
    work_with(store, capacity=4)
    drawn = random.Random(3)
    documents: dict[str, Job] = {}
    pipe = redis_client.pipeline(transaction=False)
    for sequence in range(1, 20_001):
        tenant = f"t{drawn.randrange(40)}"
        job = make_job(f"gen_{sequence:040}", tenant=tenant, sequence=sequence, cost=8)
        documents[job.id] = job
        pipe.hset(key("job", job.id), "spec", job.spec.model_dump_json())
        pipe.zadd(key("queue", "default", "normal", tenant), {job.id: sequence})
        pipe.zadd(key("active", "default", "normal"), {tenant: 0.0})
    pipe.sadd(key("pools"), "default")
    pipe.hset(key("pool", "default"), mapping={"sequence": 20_000, "queued": 20_000})
    pipe.execute()
    seer = Seer(client, clock)
    forecast = await seer.look()
    assert forecast
    assert len(forecast.model_dump_json()) < 200_000
    # All tenants are alike, and so are their jobs: every round takes one of each.
    ranks: dict[str, int] = {}
    rounds: dict[int, int] = {}
    truth: dict[str, int] = {}
    for job in documents.values():
        ranks[job.tenant] = rank = ranks.get(job.tenant, -1) + 1
        truth[job.id] = rank
        rounds[rank] = rounds.get(rank, 0) + 1
    before = {rank: sum(count for each, count in rounds.items() if each < rank) for rank in rounds}
    for job in drawn.sample(list(documents.values()), 300):
        outlook = seer.outlooks.of(job)
        assert outlook
        assert outlook.position is not None
        assert abs(outlook.position - before[truth[job.id]]) < 0.02 * 20_000
        assert outlook.start_s is not None


async def test_those_that_come_to_free_workers_at_once_wait_for_each_other(
    client: redis.asyncio.Redis, store: JobStore, clock: QueueClock
) -> None:
    """Ten jobs of ten tenants between two looks, and two places."""
    work_with(store, capacity=2)
    seer = Seer(client, clock)
    assert await seer.look()
    spec = make_job("x").spec.model_copy(update={"steps": 100})
    starts: list[float] = []
    for number in range(10):
        submit(store, f"gen_{number}", tenant=f"t{number}", spec=spec)
        outlook = seer.outlooks.of(submitted(store, f"gen_{number}", f"t{number}"))
        assert outlook
        assert outlook.start_s is not None
        starts.append(outlook.start_s)
    assert starts[:2] == [0, 0]
    assert starts[2] > 0
    assert starts == sorted(starts)
    assert starts[9] > 3 * starts[2]


async def test_waits_are_longer_while_others_come_that_go_before(
    client: redis.asyncio.Redis, store: JobStore, clock: QueueClock
) -> None:
    work_with(store)
    for number in range(20):
        submit(store, f"gen_{number}")
    seer = Seer(client, clock)
    last = submitted(store, "gen_19")
    for number in range(10):
        forecast = await seer.look()
        assert forecast
        submit(store, f"gen_h{number}", priority="high")
        clock.now_ms += 1000
    forecast = await seer.look()
    assert forecast
    pool = forecast.pools["default"]
    assert pool.overtaking.keys() == {"normal"}
    outlook = seer.outlooks.of(last)
    assert outlook
    assert outlook.start_s is not None
    position, start_s, _ = pool.next["gen_19"]
    assert outlook.position == position == 30
    assert start_s
    assert outlook.start_s > 1.1 * start_s
    # Whoever looks ahead for all tells it to the others.
    other = Seer(client, clock, "other")
    assert await other.look() == forecast
    assert other.outlooks.of(last) == outlook
