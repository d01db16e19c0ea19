"""Where events end: endpoints that are switched off, jobs that are erased, bounds, and what strangers write."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis

from service.contract.job import Status
from service.jobs.commands import Holding
from service.jobs.keys import key
from service.jobs.outbox import DueEvent, Recorded, Room, Verdict
from service.jobs.store import JobStore
from service.tenants.store import TenantStore
from tests.clock import QueueClock
from tests.jobs import ROOM, claim_all, make_job, submit
from tests.outbox import ALL, DAY_MS, LEASE_MS, OTHER, URL, SenderHand, begin, end, endpoint_of, states, step

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


# ── endpoints that are switched off ───────────────────────────────────────────────────────────────────────────────────


async def test_endpoint_that_is_gone_is_sent_nothing_more(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    for number in range(3):
        end(store, begin(store, f"gen_{number}", webhook_events=("completed",)))
    first, *_ = await sender.take(Room(events=1, failing=1, per_endpoint=4, per_tenant=50))
    assert await sender.tell(first, "gone", status=410, retry_ms=5000) == Recorded("recorded", "gone")
    assert await sender.take() == []
    end(store, begin(store, "gen_late", webhook_events=("completed",)))
    clock.now_ms += DAY_MS
    assert await sender.take() == []
    assert set(states(redis_client).values()) == {"failed"}
    assert len(states(redis_client)) == 4
    log = json.loads(redis_client.hget(key("event", "evt_gen_late_succeeded"), "log") or "")
    assert log == [{"at_ms": clock() - DAY_MS, "duration_ms": 0, "reason": "endpoint_off"}]
    endpoint = redis_client.hgetall(key("endpoint", endpoint_of()))
    assert (endpoint["disabled_reason"], endpoint["tenant"], endpoint["url"]) == ("gone", "ada", URL)
    assert redis_client.exists(key("outbox"), key("endpoint_queue", endpoint_of())) == 0


async def test_endpoint_that_fails_for_three_days_is_switched_off_and_one_success_begins_anew(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    async def attempt(verdict: Verdict) -> Recorded:
        clock.now_ms += 1
        end(store, begin(store, f"gen_{clock()}", webhook_events=("completed",)))
        *_, event = await sender.take()
        return await sender.tell(event, verdict, status=500)

    assert (await attempt("failed")).disabled is None
    clock.now_ms += 2 * DAY_MS
    assert (await attempt("failed")).disabled is None
    assert (await attempt("delivered")).disabled is None
    clock.now_ms += 2 * DAY_MS
    assert (await attempt("failed")).disabled is None
    clock.now_ms += 3 * DAY_MS - 2
    assert (await attempt("failed")).disabled is None
    assert (await attempt("failed")).disabled == "failing"


# ── what is erased ────────────────────────────────────────────────────────────────────────────────────────────────────


def traces(client: redis.Redis, job_id: str) -> list[str]:
    """Where in Redis a job is still named, beside its own document."""
    found: list[str] = []
    for name in client.scan_iter("dr:*"):
        if name == key("job", job_id):
            continue
        match client.type(name):
            case "zset":
                content = " ".join(client.zrange(name, 0, -1))
            case "hash":
                content = " ".join(client.hgetall(name).values())
            case _:
                content = ""
        if job_id in content or job_id in name:
            found.append(name)
    return sorted(found)


@pytest.mark.parametrize("moment", ["queued", "running", "sending", "ended"])
async def test_nothing_is_sent_of_what_was_erased_and_nothing_of_its_events_is_kept(
    moment: str, store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    submit(store, "gen_1", webhook_url=URL, webhook_events=ALL)
    job = None if moment == "queued" else store.claim("default", "exe", "agent")
    taken: list[DueEvent] = []
    if job is not None:
        taken = await sender.take() if moment == "sending" else []
        step(store, job, 3)
    if moment == "ended":
        assert job is not None
        end(store, job)
    assert store.erase("ada", "gen_1")
    if moment in {"running", "sending"}:
        assert job is not None
        clock.now_ms += 10_000
        store.renew("agent", [Holding(job.id, "exe", 4, 20, "denoise")])
        end(store, job, Status.CANCELED)
    for event in taken:
        assert (await sender.tell(event)).outcome == "erased"
    assert states(redis_client) == {}
    clock.now_ms += DAY_MS
    assert await sender.take() == []
    assert store.forget("ada/2026/11/gen_1/")
    assert traces(redis_client, "gen_1") == []
    assert redis_client.exists(key("outbox")) == 0


async def test_nothing_is_sent_of_what_an_earlier_version_erased(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis
) -> None:
    """Its script knows nothing of events."""
    end(store, begin(store, "gen_1", webhook_events=("completed",)))
    redis_client.hset(key("job", "gen_1"), "erase_requested", "1")
    assert await sender.take() == []
    assert states(redis_client) == {}


async def test_events_go_with_the_record_when_its_retention_is_over(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    job = begin(store, "gen_1", retain_ms=60_000)
    for event in await sender.take():
        await sender.tell(event)
    end(store, job)
    assert 0 < redis_client.pttl(key("event", "evt_gen_1_succeeded")) <= DAY_MS + 60_000
    clock.now_ms += 60_000
    assert store.due_erasures() == [job.object_prefix]
    assert store.forget(job.object_prefix)
    assert traces(redis_client, "gen_1") == []
    assert await sender.take() == []


# ── bounds, strangers, earlier versions ───────────────────────────────────────────────────────────────────────────────


async def test_delivery_log_of_a_tenant_is_bounded(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    log = key("tenant_deliveries", "ada")
    redis_client.zadd(log, {f"evt_old{number}": number for number in range(10_000)})
    end(store, begin(store, "gen_1", webhook_events=("completed",)))
    assert redis_client.zcard(log) == 10_000
    assert redis_client.zscore(log, "evt_old0") is None
    assert redis_client.zscore(log, "evt_gen_1_succeeded") == clock()


def test_endpoints_of_a_tenant_are_bounded_and_those_unused_make_room(
    store: JobStore, redis_client: redis.Redis, clock: QueueClock
) -> None:
    known, new = key("tenant_endpoints", "ada"), make_job("gen_2", webhook_url=OTHER)
    submit(store, "gen_1", webhook_url=URL)
    redis_client.zadd(known, {f"ep_{number}": clock() for number in range(999)})
    assert store.submit(new, limits=ROOM).outcome == "endpoints_full"
    assert redis_client.exists(key("job", "gen_2")) == 0
    submit(store, "gen_3", webhook_url=URL)
    submit(store, "gen_4", tenant="bob", webhook_url=OTHER)
    clock.now_ms += 30 * DAY_MS + 1
    redis_client.zadd(key("endpoint_queue", "ep_0"), {"evt_waits": 0})
    assert store.submit(new, limits=ROOM).outcome == "created"
    assert redis_client.zcard(known) < 1000
    assert redis_client.zscore(known, "ep_0") is not None
    assert redis_client.hget(key("endpoint", endpoint_of(OTHER)), "url") == OTHER


def test_endpoints_of_a_batch_are_all_kept_or_none(
    store: JobStore, redis_client: redis.Redis, clock: QueueClock
) -> None:
    known = key("tenant_endpoints", "ada")
    redis_client.zadd(known, {f"ep_{number}": clock() for number in range(997)} | {endpoint_of(): clock()})
    urls = [URL, *(f"https://{number}.example.com/" for number in (1, 2, 2, 3))]
    jobs = [make_job(f"gen_{number}", webhook_url=url) for number, url in enumerate(urls)]
    assert store.submit(*jobs, limits=ROOM).outcome == "endpoints_full"
    assert redis_client.zcard(known) == 998
    assert store.submit(*jobs[:4], limits=ROOM).outcome == "created"
    assert redis_client.zcard(known) == 1000
    # Those that are asked for make no room for one another, however long ago that was.
    clock.now_ms += 30 * DAY_MS + 1
    assert store.submit(jobs[4], limits=ROOM).outcome == "created"
    more = [make_job(f"gen_{at}", webhook_url=url) for at, url in ((7, "https://7.example.com/"), (8, URL))]
    assert store.submit(*more, limits=ROOM).outcome == "created"
    assert redis_client.zscore(known, endpoint_of()) == clock()


async def test_attempts_of_an_event_are_bounded(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    end(store, begin(store, "gen_1", webhook_events=("completed",)))
    for number in range(15):
        (event,) = await sender.take()
        await sender.tell(event, "failed", status=500 + number, retry_ms=1000)
        clock.now_ms += 1000
    log = json.loads(redis_client.hget(key("event", "evt_gen_1_succeeded"), "log") or "")
    assert [entry["status"] for entry in log] == list(range(503, 515))


async def test_events_noted_by_an_earlier_version_are_sent(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    end(store, begin(store, "gen_1", webhook_events=("completed",)))
    end(store, begin(store, "gen_2", webhook_events=("completed",)))
    for name in redis_client.scan_iter("dr:e*"):
        redis_client.delete(name)
    redis_client.delete(key("outbox"))
    for job_id, kind in (("gen_1", "succeeded"), ("gen_2", "started")):
        event = f"evt_{job_id}_{kind}"
        fields = {"job": job_id, "tenant": "ada", "type": f"generation.{kind}", "revision": 2, "created_ms": 5}
        redis_client.hset(key("event", event), mapping=fields)
        redis_client.zadd(key("outbox"), {event: clock()})
    assert await sender.take() == []
    assert await sender.ids() == ["evt_gen_1_succeeded"]
    assert await sender.take() == []
    # What nobody is told has no other end.
    assert states(redis_client) == {"evt_gen_1_succeeded": "pending"}


HOSTILE: list[tuple[str, Any]] = [
    (key("outbox"), "text"),
    (key("outbox"), {"ep_nobody": 0, "evt_nobody": 0, "": 0, "ep_%s%d": 0}),
    (key("endpoint", endpoint_of()), "text"),
    (
        key("endpoint", endpoint_of()),
        {"disabled_ms": "", "failures": "x", "failing_since_ms": "nan", "hold_until_ms": "inf"},
    ),
    (key("endpoint_queue", endpoint_of()), "text"),
    (key("endpoint_queue", endpoint_of()), {"evt_nobody": 0, "evt_\x00": 1, "": 2}),
    (key("endpoint_sending", endpoint_of()), "text"),
    (key("tenant_sending", "ada"), "text"),
    (key("tenant_endpoints", "ada"), "text"),
    (key("tenant_deliveries", "ada"), "text"),
    (key("event", "evt_gen_1_started"), "text"),
    (
        key("event", "evt_gen_1_started"),
        {"job": "gen_1", "tenant": "ada", "type": "generation.started", "endpoint": "x"},
    ),
]


@pytest.mark.parametrize("moment", ["before", "queued", "running", "ended", "sending"])
@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=lambda value: str(value)[:40])
async def test_what_a_stranger_writes_stops_neither_jobs_nor_the_next_events(
    name: str,
    value: Any,
    moment: str,
    store: JobStore,
    sender: SenderHand,
    redis_client: redis.Redis,
    clock: QueueClock,
) -> None:
    def damage(now: str) -> None:
        if now != moment:
            return
        redis_client.delete(name)
        if isinstance(value, str):
            redis_client.set(name, value)
        elif "queue" in name or "outbox" in name:
            redis_client.zadd(name, value)
        else:
            redis_client.hset(name, mapping=value)

    damage("before")
    submit(store, "gen_1", webhook_url=URL, webhook_events=ALL)
    damage("queued")
    job = store.claim("default", "exe", "agent")
    assert job is not None
    damage("running")
    step(store, job, 1)
    end(store, job)
    damage("ended")
    for event in await sender.take():
        damage("sending")
        await sender.tell(event, "failed", status=500, retry_ms=1000)
    clock.now_ms += 120_000
    end(store, begin(store, "gen_2", webhook_events=("completed",)))
    seen: set[str] = set()
    for _ in range(3):
        for event in await sender.take():
            seen.add(event.id)
            await sender.tell(event)
        clock.now_ms += 61_000
    assert "evt_gen_2_succeeded" in seen


async def test_damaged_jobs_are_let_go_of(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    for number in range(3):
        end(store, begin(store, f"gen_{number}", webhook_events=("completed",)))
    redis_client.set(key("job", "gen_0"), "text")
    redis_client.hset(key("job", "gen_1"), "spec", "{")
    events = await sender.take()
    assert [(event.id, event.job is None) for event in events] == [
        ("evt_gen_1_succeeded", True),
        ("evt_gen_2_succeeded", False),
    ]
    clock.now_ms += LEASE_MS
    assert len(await sender.take()) == 2


async def test_many_senders_hand_out_each_event_once(store: JobStore, sender: SenderHand) -> None:
    for number in range(30):
        submit(store, f"gen_{number}", webhook_url=f"https://{number}.example.com/")
    claim_all(store, 30)
    taken = await asyncio.gather(*(sender.ids(Room(5, 5, 4, 50)) for _ in range(10)))
    events = [event for part in taken for event in part]
    assert len(events) == len(set(events)) == 30


def test_a_new_tenant_does_not_see_the_endpoints_of_an_earlier_one_of_its_id(
    store: JobStore, redis_client: redis.Redis
) -> None:
    tenants = TenantStore(redis_client)
    for tenant in ("ada", "bob"):
        tenants.create(tenant)
        submit(store, f"gen_{tenant}", tenant=tenant, webhook_url=URL)
    tenants.remove("ada", force=True)
    assert store.erase("ada", "gen_ada")
    tenants.create("ada")
    assert redis_client.exists(key("tenant_endpoints", "ada"), key("endpoint", endpoint_of())) == 0
    assert redis_client.exists(key("tenant_endpoints", "bob"), key("endpoint", endpoint_of(tenant="bob"))) == 2
