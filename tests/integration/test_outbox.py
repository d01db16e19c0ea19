"""What jobs leave for the sender of webhooks, and how events are handed out: the scripts on a real Valkey."""

from __future__ import annotations

import json

import pytest
import redis
from redis.asyncio import Redis as AsyncRedis

from service.contract.job import Status
from service.jobs.deliveries import AsyncDeliveries
from service.jobs.keys import key
from service.jobs.outbox import Recorded, Room
from service.jobs.store import JobStore
from tests.clock import QueueClock
from tests.jobs import claim_all, submit
from tests.outbox import DAY_MS, LEASE_MS, OTHER, ROOMY, URL, SenderHand, begin, end, endpoint_of, states, step

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


# ── what is noted ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_end_is_told_once_with_the_job_as_it_is(store: JobStore, sender: SenderHand, clock: QueueClock) -> None:
    submit(store, "gen_1", webhook_url=URL)
    claim_all(store, 1)
    (event,) = await sender.take()
    assert (event.id, event.type, event.endpoint) == ("evt_gen_1_succeeded", "generation.succeeded", endpoint_of())
    assert (event.attempts, event.claim, event.failing, event.created_ms) == (0, "1", False, clock())
    assert event.job is not None
    assert event.job.status is Status.SUCCEEDED
    assert await sender.take() == []
    assert await sender.tell(event, status=200) == Recorded("recorded", None)
    clock.now_ms += 10 * DAY_MS
    assert await sender.take() == []


async def test_jobs_without_webhook_leave_nothing(store: JobStore, redis_client: redis.Redis) -> None:
    submit(store, "gen_1")
    claim_all(store, 1)
    assert states(redis_client) == {}
    assert redis_client.exists(key("outbox"), key("tenant_deliveries", "ada")) == 0


async def test_events_that_were_not_asked_for_are_not_told(
    store: JobStore, sender: SenderHand, clock: QueueClock
) -> None:
    only_start = begin(store, "gen_1", webhook_events=("started",))
    step(store, only_start, 1)
    end(store, only_start)
    only_end = begin(store, "gen_2", webhook_events=("completed",))
    step(store, only_end, 1)
    end(store, only_end, Status.FAILED)
    assert await sender.ids() == ["evt_gen_1_started", "evt_gen_2_failed"]


async def test_start_is_told_once_however_often_a_job_starts(store: JobStore, sender: SenderHand) -> None:
    job = begin(store, "gen_1")
    (event,) = await sender.take()
    await sender.tell(event)
    store.release("gen_1", str(job.execution_id), "drained")
    again = store.claim("default", "exe-2", "agent")
    assert again is not None
    assert await sender.take() == []


async def test_end_takes_the_place_of_what_was_not_sent(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    job = begin(store, "gen_1")
    clock.now_ms += 1000
    step(store, job, 1)
    assert list(states(redis_client).values()) == ["pending", "pending"]
    end(store, job)
    assert await sender.ids() == ["evt_gen_1_succeeded"]
    assert sorted(states(redis_client).values()) == ["pending", "superseded", "superseded"]


async def test_end_waits_for_what_is_being_sent_of_its_job_and_for_nothing_else(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    job = begin(store, "gen_1")
    (start,) = await sender.take()
    end(store, job)
    other = begin(store, "gen_2", webhook_events=("completed",))
    end(store, other)
    (unrelated,) = await sender.take()
    assert unrelated.id == "evt_gen_2_succeeded"
    await sender.tell(unrelated)
    assert await sender.tell(start, "failed", reason="timeout", retry_ms=5000) == Recorded("recorded", None)
    assert states(redis_client)["evt_gen_1_started"] == "superseded"
    clock.now_ms += 1
    assert await sender.ids() == ["evt_gen_1_succeeded"]


async def test_progress_waits_for_the_start(store: JobStore, sender: SenderHand, clock: QueueClock) -> None:
    job = begin(store, "gen_1")
    (start,) = await sender.take()
    step(store, job, 1)
    assert await sender.take() == []
    await sender.tell(start, "failed", status=500, retry_ms=5000)
    clock.now_ms += 4000
    assert await sender.take() == []
    clock.now_ms += 1000
    (start,) = await sender.take()
    assert (start.id, start.attempts, start.claim) == ("evt_gen_1_started", 1, "2")
    await sender.tell(start)
    (progress,) = await sender.take()
    assert progress.type == "generation.progress"
    assert progress.job is not None
    assert progress.job.progress_step == 1


async def test_progress_is_told_seldom_with_the_newest_step_and_kept_once(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    job = begin(store, "gen_1", webhook_events=("progress",))
    sent: list[tuple[str, int]] = []
    for number in range(1, 13):
        step(store, job, number)
        clock.now_ms += 1000
        for event in await sender.take():
            assert event.job is not None
            sent.append((event.id, event.job.progress_step))
            await sender.tell(event)
    assert [number for _, number in sent] == [1, 6, 11]
    assert len({event for event, _ in sent}) == 3
    # One that could not be sent yet is not joined by another, and tells what is true when it is sent.
    for number in range(13, 20):
        clock.now_ms += 6000
        step(store, job, number)
    assert len(states(redis_client)) == 1
    (event,) = await sender.take()
    assert event.job is not None
    assert event.job.progress_step == 19
    clock.now_ms += 6000
    step(store, job, 20)
    assert list(states(redis_client)) == [event.id]
    assert (await sender.tell(event)).outcome == "recorded"


# ── handing out ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_sender_that_dies_is_followed_by_another_with_the_same_id(
    store: JobStore, sender: SenderHand, clock: QueueClock
) -> None:
    end(store, begin(store, "gen_1", webhook_events=("completed",)))
    (lost,) = await sender.take()
    clock.now_ms += LEASE_MS - 1
    assert await sender.take() == []
    clock.now_ms += 1
    (again,) = await sender.take()
    assert (again.id, again.claim, again.attempts) == (lost.id, "2", 0)
    # The one that was taken for dead speaks: its failure is stale, but what arrived has arrived.
    assert await sender.tell(lost, "failed", reason="timeout", retry_ms=5000) == Recorded("fenced", None)
    assert await sender.take() == []
    assert (await sender.tell(lost)).outcome == "recorded"
    assert (await sender.tell(again)).outcome == "fenced"
    clock.now_ms += DAY_MS
    assert await sender.take() == []


async def test_a_clock_that_is_set_back_does_not_keep_an_endpoint_busy_with_senders_that_died(
    store: JobStore, sender: SenderHand, clock: QueueClock
) -> None:
    for number in range(4):
        end(store, begin(store, f"gen_{number}", webhook_events=("completed",)))
    assert len(await sender.take()) == ROOMY.per_endpoint
    clock.now_ms -= 3_600_000
    end(store, begin(store, "gen_9", webhook_events=("completed",)))
    assert await sender.ids() == ["evt_gen_9_succeeded"]


async def test_event_that_kills_its_senders_is_given_up(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    end(store, begin(store, "gen_1", webhook_events=("completed",)))
    for _ in range(20):
        assert len(await sender.take()) == 1
        clock.now_ms += LEASE_MS
    assert await sender.take() == []
    event = redis_client.hgetall(key("event", "evt_gen_1_succeeded"))
    assert (event["state"], json.loads(event["log"])[-1]["reason"]) == ("failed", "sender_lost")


async def test_sender_of_an_earlier_delivery_does_not_speak_for_the_present_one(
    store: JobStore, sender: SenderHand, valkey_url: str, clock: QueueClock
) -> None:
    end(store, begin(store, "gen_1", webhook_events=("completed",)))
    (lost,) = await sender.take()
    clock.now_ms += LEASE_MS
    async with AsyncRedis.from_url(valkey_url, decode_responses=True) as client:
        assert await AsyncDeliveries(client, clock=clock).redeliver("ada", lost.id) == "accepted"
    (present,) = await sender.take()
    assert (await sender.tell(lost, "gone", status=410)).outcome == "fenced"
    assert await sender.take() == []
    assert (await sender.tell(present, "failed", status=500, retry_ms=5000)).outcome == "recorded"


async def test_recording_twice_is_recording_once(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    end(store, begin(store, "gen_1", webhook_events=("completed",)))
    (event,) = await sender.take()
    assert (await sender.tell(event, "failed", status=500, retry_ms=5000)).outcome == "recorded"
    assert (await sender.tell(event, "failed", status=500, retry_ms=5000)).outcome == "fenced"
    stored = redis_client.hgetall(key("event", event.id))
    assert (stored["attempts"], stored["next_ms"]) == ("1", str(clock() + 5000))
    assert json.loads(stored["log"]) == [{"at_ms": clock(), "duration_ms": 12, "status": 500}]
    assert redis_client.hget(key("endpoint", endpoint_of()), "failures") == "1"


async def test_an_endpoint_bears_so_many_at_once_and_fewer_while_it_fails(
    store: JobStore, sender: SenderHand, clock: QueueClock
) -> None:
    for number in range(10):
        end(store, begin(store, f"gen_{number}", webhook_events=("completed",)))
    first = await sender.take()
    assert len(first) == 4
    clock.now_ms += 1000
    assert await sender.take() == []
    await sender.tell(first[0])
    assert len(await sender.take()) == 1
    for event in first[1:]:
        await sender.tell(event, "failed", reason="connect", retry_ms=10**6)
    clock.now_ms += LEASE_MS
    (alone,) = await sender.take()
    assert alone.failing
    clock.now_ms += 1000
    assert await sender.take() == []
    await sender.tell(alone)
    assert len(await sender.take()) == 4


async def test_what_one_call_and_one_tenant_get_is_bounded(
    store: JobStore, sender: SenderHand, clock: QueueClock
) -> None:
    for number in range(12):
        fields = {"tenant": "ada" if number < 8 else "bob", "webhook_url": f"https://{number % 8}.example.com/"}
        submit(store, f"gen_{number}", **fields)
    claim_all(store, 12)
    assert len(await sender.take(Room(events=3, failing=1, per_endpoint=4, per_tenant=5))) == 3
    more = await sender.take(Room(events=100, failing=50, per_endpoint=4, per_tenant=5))
    tenants = [event.job.tenant for event in more if event.job]
    assert sorted(tenants).count("ada") <= 5
    assert len(more) == 9 - 3
    assert tenants.count("bob") + tenants.count("ada") == 6


async def test_receivers_that_fail_leave_half_of_the_room_to_the_others(
    store: JobStore, sender: SenderHand, clock: QueueClock
) -> None:
    for number in range(20):
        submit(store, f"gen_dead{number}", tenant=f"t{number}", webhook_url=URL)
    claim_all(store, 20)
    for event in await sender.take():
        await sender.tell(event, "failed", reason="timeout", retry_ms=5000)
    clock.now_ms += 5000
    submit(store, "gen_well", webhook_url=OTHER)
    claim_all(store, 1)
    handed = await sender.take(Room(events=10, failing=5, per_endpoint=4, per_tenant=10))
    assert [event.failing for event in handed].count(True) == 5
    assert "evt_gen_well_succeeded" in [event.id for event in handed]


async def test_endpoint_that_asks_for_it_is_left_alone(
    store: JobStore, sender: SenderHand, redis_client: redis.Redis, clock: QueueClock
) -> None:
    for number in range(3):
        end(store, begin(store, f"gen_{number}", webhook_events=("completed",)))
    first, second, third = await sender.take()
    await sender.tell(first, "failed", status=429, retry_ms=60_000, hold_ms=60_000)
    await sender.tell(second, "failed", status=500, retry_ms=5000)
    end(store, begin(store, "gen_new", webhook_events=("completed",)))
    clock.now_ms += 59_999
    assert await sender.take() == []
    redis_client.zadd(key("outbox"), {endpoint_of(): 0})
    assert await sender.take() == []
    clock.now_ms += 1
    assert len(await sender.take()) == 1
    # No one can ask for longer than an hour, whatever stands in Redis.
    redis_client.hset(key("endpoint", endpoint_of()), "hold_until_ms", 10**18)
    await sender.tell(third)
    redis_client.hset(key("endpoint", endpoint_of()), "hold_until_ms", 10**18)
    clock.now_ms += 60_000
    assert len(await sender.take()) >= 1
