"""Many jobs in one submit: all of them or none, as fairly counted as if they had come one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from service.contract.rate import RequestRate
from service.jobs.commands import Idempotency, SubmitLimits
from service.jobs.keys import key
from service.jobs.queue import queue_name
from service.jobs.store import JobStore
from service.tenants.records import TenantLimits
from service.tenants.store import TenantStore
from tests.clock import QueueClock
from tests.jobs import ROOM, claim_all, make_job, submit


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


def _dump(client: redis.Redis) -> dict[str, object]:
    """Return everything that is stored."""
    return {name: client.dump(name) for name in client.scan_iter()}


@pytest.fixture
def raw(valkey_url: str) -> Iterator[redis.Redis]:
    """A client that reads stored bytes as they are."""
    client = redis.Redis.from_url(valkey_url)
    yield client
    client.close()


def test_jobs_of_one_submit_are_drawn_in_their_order_each_with_a_bell_of_its_own(
    redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    jobs = [
        make_job("gen_3", created_ms=clock.now_ms - 5000, finish_by_ms=clock.now_ms + 5000),
        make_job("gen_1", created_ms=clock.now_ms, labels={"user": "7"}),
        make_job("gen_2", created_ms=clock.now_ms, pool="xl", model="xl"),
    ]
    reply = store.submit(*jobs, limits=ROOM)
    assert (reply.outcome, reply.job_ids, reply.created_ms) == ("created", ("gen_3", "gen_1", "gen_2"), clock.now_ms)
    bells = {pool: redis_client.lrange(key("rq_queue", pool), 0, -1) for pool in ("default", "xl")}
    assert [len(bells[pool]) for pool in ("default", "xl")] == [2, 1]
    assert redis_client.exists(*[key("rq_job", bell) for pool in bells for bell in bells[pool]]) == 3
    assert redis_client.hget(key("rq_job", bells["xl"][0]), "origin") == queue_name("xl")
    assert redis_client.hget(key("tenant_counts", "ada"), "queued") == "3"
    first = store.get("ada", "gen_3")
    assert first is not None
    assert (first.created_ms, first.finish_by_ms) == (clock.now_ms, clock.now_ms + 10_000)
    assert [job.id for job in claim_all(store, 3)] == ["gen_3", "gen_1"]
    assert [job.id for job in claim_all(store, 3, pool="xl")] == ["gen_2"]


def test_what_does_not_fit_as_a_whole_leaves_nothing(
    redis_client: redis.Redis, raw: redis.Redis, store: JobStore
) -> None:
    TenantStore(redis_client).create("ada", limits=TenantLimits(max_queued=3, max_requests_per_minute=12))
    submit(store, "gen_0", pool="xl")
    before = _dump(raw)
    xl = [make_job(f"gen_{number}", pool="xl") for number in (1, 2)]
    full = store.submit(make_job("gen_3"), *xl, limits=SubmitLimits(None, 2))
    assert (full.outcome, full.pool, full.job_ids) == ("rate_limited", "", ())
    full = store.submit(*xl, limits=SubmitLimits(None, 2))
    assert (full.outcome, full.pool, full.job_ids) == ("pool_full", "xl", ())
    assert _dump(raw) == before
    raw.hset(key("tenant", "ada"), "max_queued", 2)
    before = _dump(raw)
    assert store.submit(*xl, limits=ROOM).outcome == "tenant_full"
    assert _dump(raw) == before


def test_a_rate_counts_every_job_and_refuses_the_whole(redis_client: redis.Redis, store: JobStore) -> None:
    TenantStore(redis_client).create("ada", limits=TenantLimits(max_requests_per_minute=20))
    first = store.submit(*[make_job(f"gen_{number}") for number in range(3)], limits=ROOM)
    assert first.rate == RequestRate(20, 2, 3)
    refused = store.submit(*[make_job(f"gen_{number}") for number in range(3, 6)], limits=ROOM)
    assert (refused.outcome, refused.rate) == ("rate_limited", RequestRate(20, 2, 3))
    assert store.submit(make_job("gen_3"), make_job("gen_4"), limits=ROOM).rate == RequestRate(20, 0, 3)
    assert redis_client.hget(key("usage", "ada", str(1_800_000_000_000 // 86_400_000)), "requests") == "5"


def test_a_repeated_call_finds_all_of_its_jobs_until_one_is_erased(store: JobStore) -> None:
    once = Idempotency("record", "body", 60)
    jobs = [make_job(f"gen_{number}") for number in range(3)]
    ids = tuple(job.id for job in jobs)
    assert store.submit(*jobs, idempotency=once, limits=ROOM).outcome == "created"
    # A lost reply: the same ids again.
    again = store.submit(*jobs, idempotency=once, limits=ROOM)
    assert (again.outcome, again.job_ids) == ("created", ids)
    others = [make_job(f"gen_{number}") for number in range(3, 6)]
    replayed = store.submit(*others, idempotency=once, limits=ROOM)
    assert (replayed.outcome, replayed.job_ids) == ("replayed", ids)
    assert store.submit(*others, idempotency=Idempotency("record", "else", 60), limits=ROOM).outcome == "mismatch"
    assert store.erase("ada", "gen_2")
    assert store.submit(*others, idempotency=once, limits=ROOM).outcome == "gone"
    assert [store.get("ada", job.id) for job in others] == [None] * 3


def test_each_job_knows_how_many_of_its_tenants_class_waited_before_it(store: JobStore) -> None:
    first = store.submit(make_job("gen_1"), make_job("gen_2"), make_job("gen_3", priority="low"), limits=ROOM)
    assert first.aheads == (0, 1, 0)
    submit(store, "gen_b", tenant="bob")
    claim_all(store, 1)
    second = store.submit(make_job("gen_4"), limits=ROOM)
    assert second.aheads == (1,)
    stored = [store.get("ada", f"gen_{number}") for number in (2, 3, 4)]
    assert [job and job.ahead for job in stored] == [1, 0, 1]


@pytest.mark.parametrize("name", [key("tenant_jobs", "ada"), key("tenant_held", "ada"), key("tenant_counts", "ada")])
def test_a_tenant_whose_keys_are_damaged_takes_no_place_of_others(
    redis_client: redis.Redis, store: JobStore, name: str
) -> None:
    redis_client.set(name, "text")
    for number in range(3):
        with pytest.raises(redis.ResponseError):
            store.submit(make_job(f"gen_{number}"), limits=SubmitLimits(None, 2))
    assert redis_client.hget(key("pool", "default"), "queued") is None
    jobs = [make_job(f"gen_b{number}", tenant="bob") for number in range(2)]
    assert store.submit(*jobs, limits=SubmitLimits(None, 2)).outcome == "created"
    assert [job.id for job in claim_all(store, 3)] == ["gen_b0", "gen_b1"]
    assert redis_client.hget(key("pool", "default"), "queued") == "0"
