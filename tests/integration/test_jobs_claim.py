"""Who may claim what, and what may not stop a claim."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import redis
from redis.asyncio import Redis as AsyncRedis

from service.contract.worker import WorkerRecord
from service.jobs.commands import SubmitLimits
from service.jobs.documents import CorruptDocument
from service.jobs.keys import key
from service.jobs.listing import JobListing
from service.jobs.store import JobStore
from tests.e2e.processes import wait_for
from tests.jobs import make_job


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client)


def submit(store: JobStore, job_id: str, **fields: Any) -> None:
    job = make_job(job_id, created_ms=round(time.time() * 1000), **fields)
    assert store.submit(job, limits=SubmitLimits(None, 1000)).outcome == "created"


def test_a_job_waits_for_an_agent_that_holds_its_model_and_holds_up_nobody(store: JobStore) -> None:
    submit(store, "gen_ada_new", model="new")
    submit(store, "gen_ada_old", model="old")
    submit(store, "gen_bob_new", model="new", tenant="bob", priority="high")
    submit(store, "gen_eve_old", model="old", tenant="eve")
    claimed = [store.claim("default", f"e{number}", "agent", models=["old", "other"]) for number in range(3)]
    assert [job and job.id for job in claimed] == ["gen_ada_old", "gen_eve_old", None]
    updated = [store.claim("default", f"u{number}", "updated", models=["new"]) for number in range(3)]
    assert [job and job.id for job in updated] == ["gen_bob_new", "gen_ada_new", None]


def test_an_entry_without_a_document_is_struck_out_and_the_queue_goes_on(
    redis_client: redis.Redis, store: JobStore
) -> None:
    for number in range(12):
        submit(store, f"gen_{number}")
    submit(store, "gen_gone", tenant="eve")
    for lost in ("gen_0", "gen_5", "gen_gone"):
        redis_client.delete(key("job", lost))
    claimed = [store.claim("default", f"e{number}", "agent") for number in range(12)]
    assert {job and job.id for job in claimed} == {f"gen_{number}" for number in range(12)} - {"gen_0", "gen_5"} | {
        None
    }
    assert redis_client.hget(key("pool", "default"), "queued") == "0"
    assert redis_client.hget(key("tenant_counts", "eve"), "queued") == "0"
    assert store.reap(take_back=False).bells == 0
    assert redis_client.zcard(key("active", "default", "normal")) == 0


def test_agents_that_fell_silent_are_forgotten(redis_client: redis.Redis, store: JobStore) -> None:
    for number in range(5):
        store.announce(WorkerRecord(agent_id=f"gone{number}", pool="default"), [], ttl_ms=1)

    def only_the_living() -> bool:
        store.announce(WorkerRecord(agent_id="alive", pool="default"), [], ttl_ms=60_000)
        return redis_client.zrange(key("agents"), 0, -1) == ["alive"]

    wait_for("the dead to be forgotten", only_the_living, timeout_s=5)


@pytest.mark.parametrize(
    "damage", [{"cost": "nan"}, {"cost": "inf"}, {"sequence": "x"}, {"tenant": "other"}, {"pool": ""}]
)
def test_a_damaged_document_stops_neither_claims_nor_the_reaper(
    redis_client: redis.Redis, store: JobStore, damage: dict[str, str]
) -> None:
    for number in range(3):
        submit(store, f"gen_{number}")
    redis_client.hset(key("job", "gen_0"), mapping=damage)
    claimed = set[str]()
    for number in range(4):
        try:
            job = store.claim("default", f"e{number}", "agent")
        except CorruptDocument as err:
            claimed.add(err.job_id)
        else:
            claimed |= {job.id} if job else set()
    assert {"gen_1", "gen_2"} <= claimed
    assert store.claim("default", "last", "agent") is None
    redis_client.zadd(key("leases"), dict.fromkeys(claimed, 0))
    store.reap(take_back=True)
    assert redis_client.zrangebyscore(key("leases"), "-inf", 0) == []
    assert {str(redis_client.hget(key("job", f"gen_{number}"), "status")) for number in (1, 2)} == {"queued"}


def test_a_damaged_document_hides_no_other_in_a_listing(
    redis_client: redis.Redis, store: JobStore, valkey_url: str
) -> None:
    for number in range(3):
        submit(store, f"gen_{number}")
    redis_client.hset(key("job", "gen_1"), "cost", "nan")

    async def listed() -> set[str]:
        async with AsyncRedis.from_url(valkey_url, decode_responses=True) as client:
            return {job.id for job in (await JobListing(client).page("ada", limit=10)).jobs}

    assert asyncio.run(listed()) == {"gen_0", "gen_2"}
