"""Listings, a page at a time, while jobs come and go: none is skipped, none comes twice, and no page costs much."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence

import pytest
import redis
from redis.asyncio import Redis as AsyncRedis

from service.contract.job import Status
from service.jobs import documents
from service.jobs.keys import key
from service.jobs.listing import LAST_MS, SCAN_MAX, Filter, JobListing, Page, Position
from service.jobs.store import JobStore
from tests.clock import QueueClock
from tests.jobs import claim_all, make_job, submit

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


@pytest.fixture
async def reader(valkey_url: str) -> AsyncIterator[AsyncRedis]:
    async with AsyncRedis.from_url(valkey_url, decode_responses=True) as client:
        yield client


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("filtered", [False, True])
async def test_jobs_that_come_and_go_between_pages_hide_none_and_repeat_none(
    store: JobStore, clock: QueueClock, reader: AsyncRedis, seed: int, filtered: bool
) -> None:
    chance = random.Random(seed)
    alive: list[str] = []

    def come() -> None:
        # Several in one millisecond, whose ids have nothing to do with their order.
        clock.now_ms += chance.choice((0, 0, 0, 1, 5))
        job_id = f"gen_{chance.randrange(10**9)}"
        submit(store, job_id, labels={"n": str(chance.randrange(2))})
        alive.append(job_id)

    def go() -> None:
        job_id = alive.pop(chance.randrange(len(alive)))
        assert store.erase("ada", job_id)

    for _ in range(60):
        come()
    there = {job_id for job_id in alive if not filtered or _label(store, job_id) == "1"}
    listing, position, seen = JobListing(reader), None, list[str]()
    while True:
        page = await listing.page(
            "ada", limit=chance.choice((1, 3, 7)), after=position, labels={"n": "1"} if filtered else None
        )
        seen += [job.id for job in page.jobs]
        position = page.next
        if position is None or len(seen) > 1000:
            break
        for _ in range(chance.randrange(4)):
            chance.choice((come, go))()
    assert len(seen) == len(set(seen))
    assert there & set(alive) <= set(seen)


def _label(store: JobStore, job_id: str) -> str:
    job = store.get("ada", job_id)
    assert job is not None
    return job.labels["n"]


async def test_the_order_is_newest_first_also_within_one_moment(
    store: JobStore, clock: QueueClock, reader: AsyncRedis
) -> None:
    for number in (3, 1, 2):
        submit(store, f"gen_{number}")
    clock.now_ms += 1
    submit(store, "gen_0")
    pages = [page async for page in _pages(JobListing(reader), 1)]
    assert pages == [["gen_0"], ["gen_3"], ["gen_2"], ["gen_1"], []]


async def _pages(listing: JobListing, limit: int) -> AsyncIterator[list[str]]:
    position = None
    while True:
        page = await listing.page("ada", limit=limit, after=position)
        yield [job.id for job in page.jobs]
        position = page.next
        if position is None:
            return


class _Meanwhile(JobListing):
    """A listing during which a caller erases what was just found."""

    def __init__(self, reader: AsyncRedis, store: JobStore, job_id: str) -> None:
        super().__init__(reader)
        self._store, self._job_id = store, job_id

    async def _matching(self, tenant: str, entries: Sequence[Position], wish: Filter) -> list[Position]:
        found = await super()._matching(tenant, entries, wish)
        self._store.erase(tenant, self._job_id)
        return found


async def test_one_that_goes_while_the_page_is_read_is_replaced_by_the_next(
    store: JobStore, clock: QueueClock, reader: AsyncRedis
) -> None:
    for number in range(5):
        submit(store, f"gen_{number}")
        clock.now_ms += 1
    page = await _Meanwhile(reader, store, "gen_3").page("ada", limit=2, status=Status.QUEUED)
    assert [job.id for job in page.jobs] == ["gen_4", "gen_2"]


async def test_a_filter_that_matches_one_of_a_hundred_thousand_looks_at_a_thousand_a_page(
    redis_client: redis.Redis, store: JobStore, clock: QueueClock, reader: AsyncRedis
) -> None:
    submit(store, "gen_first", labels={"order": "12"})
    claim_all(store, 1)
    fields = documents.encode(make_job("gen_n", labels={"order": "13"}))
    for start in range(0, 100_000, 5000):
        pipe = redis_client.pipeline(transaction=False)
        numbers = range(start, start + 5000)
        pipe.zadd(key("tenant_jobs", "ada"), {f"gen_{n}": clock.now_ms + 1 + n for n in numbers})
        # The newest pages are looked at; documents behind them would only take time.
        for n in numbers if start >= 95_000 else ():
            pipe.hset(key("job", f"gen_{n}"), mapping=fields)
        pipe.execute()
    listing = JobListing(reader)
    before = _calls(redis_client)
    page = await listing.page("ada", limit=20, labels={"order": "12"})
    used = {name: count - before.get(name, 0) for name, count in _calls(redis_client).items()}
    assert (page.jobs, page.next is not None) == ([], True)
    assert used["hmget"] == SCAN_MAX
    assert used.get("hgetall", 0) == 0
    assert used["zrange"] <= 2 * SCAN_MAX / 200
    # The one is found in the end, by those who go on; here from near there.
    page, pages = Page([], Position(clock.now_ms + 5001, "gen_5000")), 0
    while page.next is not None and not page.jobs:
        page = await listing.page("ada", limit=20, after=page.next, labels={"order": "12"}, status=Status.SUCCEEDED)
        pages += 1
    assert [job.id for job in page.jobs] == ["gen_first"]
    assert pages == 6


def _calls(client: redis.Redis) -> dict[str, int]:
    stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()}


async def test_entries_that_are_none_of_ours_stop_no_listing(
    redis_client: redis.Redis, store: JobStore, reader: AsyncRedis
) -> None:
    submit(store, "gen_1", labels={"a": "b"})
    strange = {"ghost": 1, "endless": float("inf"), "negative": -5.5, "ünï\n": 2.5, "x" * 500: 10**18}
    redis_client.zadd(key("tenant_jobs", "ada"), strange)
    for name, text in {"list": "[]", "text": '"a"', "noise": "{", "deep": "[" * 100_000}.items():
        redis_client.zadd(key("tenant_jobs", "ada"), {name: 3})
        redis_client.hset(key("job", name), mapping={"tenant": "ada", "labels": text, "status": "queued"})
    for limit in (1, 20):
        for labels in (None, {"a": "b"}):
            position, seen = None, list[str]()
            for _ in range(30):
                page = await JobListing(reader).page("ada", limit=limit, after=position, labels=labels)
                seen += [job.id for job in page.jobs]
                position = page.next
                if position is None:
                    break
                assert 0 <= position.created_ms <= LAST_MS
            assert (position, seen) == (None, ["gen_1"])
