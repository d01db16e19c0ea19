"""What the queue promises, one promise a test, against a real Valkey."""

from __future__ import annotations

import pytest
import redis
from rq import Queue
from rq.job import Job as Bell
from rq.serializers import JSONSerializer

from service.contract.errors import FailureCode
from service.contract.generation import ResultImage, Timings
from service.contract.job import Status
from service.jobs import documents
from service.jobs.commands import Holding, Idempotency, Outcome, SubmitLimits
from service.jobs.keys import key
from service.jobs.queue import BELL_FUNCTION, queue_name
from service.jobs.store import LEASE_MS, JobStore
from tests.clock import QueueClock
from tests.jobs import claim_all, make_job, submit

ROOM = SubmitLimits(None, 10_000)


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


def test_a_document_survives_the_way_to_redis_and_back(store: JobStore) -> None:
    sent = submit(store, "gen_1", labels={"ünï": "✓"}, priority="low", request_id="req", start_by_ms=1_800_000_005_000)
    assert store.get("ada", "gen_1") == sent.model_copy(update={"sequence": 1})


def test_a_hostile_document_is_refused_without_showing_what_it_holds(
    redis_client: redis.Redis, store: JobStore
) -> None:
    submit(store, "gen_1")
    redis_client.hset(key("job", "gen_1"), "spec", '{"prompt": "SECRET"')
    with pytest.raises(documents.CorruptDocument) as caught:
        store.get("ada", "gen_1")
    assert "SECRET" not in str(caught.value)


def test_the_times_of_a_late_gateway_are_moved_to_the_clock_of_redis(store: JobStore, clock: QueueClock) -> None:
    submit(store, "gen_1", created_ms=clock.now_ms - 5_000, finish_by_ms=clock.now_ms + 5_000)
    job = store.get("ada", "gen_1")
    assert job is not None
    assert (job.created_ms, job.finish_by_ms) == (clock.now_ms, clock.now_ms + 10_000)


def test_the_bell_is_what_rq_itself_would_have_stored(
    redis_client: redis.Redis, store: JobStore, valkey_url: str
) -> None:
    submit(store, "gen_1", pool="xl")
    plain = redis.Redis.from_url(valkey_url)
    queue = Queue(queue_name("xl"), connection=plain, serializer=JSONSerializer)
    assert queue in Queue.all(connection=plain, serializer=JSONSerializer)
    (bell_id,) = queue.job_ids
    ours = Bell.fetch(bell_id, connection=plain, serializer=JSONSerializer)
    assert (ours.func_name, list(ours.args), ours.kwargs, ours.description) == (BELL_FUNCTION, [], {}, "gen_1")
    theirs = queue.enqueue(BELL_FUNCTION, result_ttl=0, failure_ttl=60, job_timeout=300, description="gen_1")
    stored = plain.hgetall(ours.key)
    expected = plain.hgetall(theirs.key)
    moments = {b"created_at", b"enqueued_at"}
    assert {n: v for n, v in stored.items() if n not in moments} == {
        n: v for n, v in expected.items() if n not in moments
    }
    plain.close()


def test_one_idempotency_key_is_one_job_until_the_job_is_erased_and_never_another(store: JobStore) -> None:
    once = Idempotency("record", "body", 60)
    assert store.submit(make_job("gen_1"), idempotency=once, limits=ROOM).outcome == "created"
    again = store.submit(make_job("gen_2"), idempotency=once, limits=ROOM)
    assert (again.outcome, again.job_ids) == ("replayed", ("gen_1",))
    other_body = store.submit(make_job("gen_3"), idempotency=Idempotency("record", "else", 60), limits=ROOM)
    assert (other_body.outcome, other_body.job_ids) == ("mismatch", ("gen_1",))
    other_tenant = store.submit(make_job("gen_4", tenant="bob"), idempotency=once, limits=ROOM)
    assert other_tenant.outcome == "created"
    assert store.erase("ada", "gen_1")
    assert store.submit(make_job("gen_5"), idempotency=once, limits=ROOM).outcome == "gone"
    for prefix in store.due_erasures():
        store.forget(prefix)
    assert store.submit(make_job("gen_6"), idempotency=once, limits=ROOM).outcome == "gone"
    assert [store.get("ada", f"gen_{n}") for n in (2, 3, 5, 6)] == [None] * 4


def test_caps_refuse_and_leave_nothing(redis_client: redis.Redis, store: JobStore) -> None:
    redis_client.hset(key("tenant", "bob"), "max_queued", 1)
    submit(store, "gen_1", tenant="bob")
    assert store.submit(make_job("gen_2", tenant="bob"), limits=ROOM).outcome == "tenant_full"
    submit(store, "gen_3")
    assert store.submit(make_job("gen_4"), limits=SubmitLimits(1, 100)).outcome == "tenant_full"
    assert store.submit(make_job("gen_5", tenant="eve"), limits=SubmitLimits(None, 2)).outcome == "pool_full"
    assert set(redis_client.scan_iter(key("job", "*"))) == {key("job", "gen_1"), key("job", "gen_3")}


def test_a_lease_that_ran_out_goes_back_to_the_front_and_the_late_one_is_fenced(
    store: JobStore, clock: QueueClock
) -> None:
    submit(store, "gen_1")
    submit(store, "gen_2")
    assert store.claim("default", "dead", "agent1") is not None
    clock.now_ms += LEASE_MS + 1
    assert store.reap(take_back=False).leases == 0
    assert store.reap(take_back=True).leases == 1
    again = store.claim("default", "alive", "agent2")
    assert again is not None
    assert (again.id, again.attempt, again.losses) == ("gen_1", 2, 1)
    assert store.renew("agent1", [Holding("gen_1", "dead")]) == ["fenced"]
    assert store.commit("gen_1", "dead", Outcome(Status.SUCCEEDED)) == "fenced"
    assert store.commit("gen_1", "alive", Outcome(Status.SUCCEEDED)) == "committed"
    assert store.commit("gen_1", "dead", Outcome(Status.SUCCEEDED)) == "fenced"


def test_a_lease_that_ran_out_but_was_not_taken_back_still_renews_and_commits(
    store: JobStore, clock: QueueClock
) -> None:
    submit(store, "gen_1")
    store.claim("default", "slow", "agent")
    clock.now_ms += 10 * LEASE_MS
    assert store.renew("agent", [Holding("gen_1", "slow")]) == ["ok"]
    clock.now_ms += 10 * LEASE_MS
    assert store.commit("gen_1", "slow", Outcome(Status.SUCCEEDED)) == "committed"


def test_worker_after_worker_lost_ends_the_job(store: JobStore, clock: QueueClock) -> None:
    submit(store, "gen_1")
    for number in range(10):
        assert store.claim("default", f"e{number}", "agent") is not None
        clock.now_ms += LEASE_MS + 1
        store.reap(take_back=True)
    job = store.get("ada", "gen_1")
    assert job is not None
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (FailureCode.WORKER_LOST, True)


def test_a_suspect_runs_alone_and_two_deaths_alone_are_poison(store: JobStore) -> None:
    submit(store, "gen_1")
    store.claim("default", "e0", "agent")
    assert store.release("gen_1", "e0", "engine_lost") is Status.QUEUED
    submit(store, "gen_2")
    busy = store.claim("default", "e1", "agent", idle=False)
    assert busy is not None
    assert busy.id == "gen_2"
    alone = store.claim("default", "e2", "agent", idle=True)
    assert alone is not None
    assert (alone.id, alone.suspect, alone.strikes) == ("gen_1", True, 0)
    assert store.release("gen_1", "e2", "engine_lost") is Status.QUEUED
    store.claim("default", "e3", "agent")
    assert store.release("gen_1", "e3", "engine_lost") is Status.FAILED
    job = store.get("ada", "gen_1")
    assert job is not None
    assert job.error is not None
    assert (job.error.code, job.error.retryable, job.strikes) == (FailureCode.POISON, False, 2)


def test_a_drained_job_is_not_charged_an_attempt_nor_a_place(store: JobStore) -> None:
    submit(store, "gen_1")
    submit(store, "gen_2")
    store.claim("default", "e0", "agent")
    store.renew("agent", [Holding("gen_1", "e0", 3, 4, "denoise")])
    assert store.release("gen_1", "e0", "drained") is Status.QUEUED
    again = store.claim("default", "e1", "agent")
    assert again is not None
    assert (again.id, again.attempt, again.progress_step, again.suspect) == ("gen_1", 1, 0, False)


def test_a_cancel_before_the_claim_is_never_started_and_one_after_it_reaches_the_agent(
    redis_client: redis.Redis, store: JobStore
) -> None:
    submit(store, "gen_1")
    canceled = store.cancel("ada", "gen_1")
    assert canceled is not None
    assert canceled.status is Status.CANCELED
    assert store.claim("default", "e0", "agent") is None
    submit(store, "gen_2")
    store.claim("default", "e1", "agent")
    orders = redis_client.pubsub(ignore_subscribe_messages=True)
    orders.subscribe(key("orders", "agent"))
    orders.get_message(timeout=1)
    running = store.cancel("ada", "gen_2")
    assert running is not None
    assert (running.status, running.cancel_requested) == (Status.RUNNING, True)
    message = orders.get_message(timeout=5)
    assert message is not None
    assert message["data"] == "cancel e1"
    orders.close()
    assert store.renew("agent", [Holding("gen_2", "e1")]) == ["cancel"]
    assert store.commit("gen_2", "e1", Outcome(Status.CANCELED)) == "committed"
    ended = store.cancel("ada", "gen_2")
    assert ended is not None
    assert ended.status is Status.CANCELED


def test_deadlines_end_waiting_and_running_jobs(redis_client: redis.Redis, store: JobStore, clock: QueueClock) -> None:
    submit(store, "gen_wait", start_by_ms=clock.now_ms + 1000)
    submit(store, "gen_run", finish_by_ms=clock.now_ms + 5000, start_by_ms=clock.now_ms + 800, priority="high")
    store.claim("default", "e0", "agent")
    clock.now_ms += 1000
    assert store.claim("default", "e1", "agent") is None
    waiting = store.get("ada", "gen_wait")
    assert waiting is not None
    assert waiting.status is Status.EXPIRED
    clock.now_ms += 4000
    assert store.reap(take_back=False).deadlines == 1
    job = store.get("ada", "gen_run")
    assert job is not None
    assert job.status is Status.EXPIRED
    assert job.error is not None
    assert job.error.code == FailureCode.DEADLINE_EXCEEDED
    assert store.commit("gen_run", "e0", Outcome(Status.SUCCEEDED)) == "fenced"


def test_an_erased_job_keeps_nothing_even_when_its_result_comes_later(
    redis_client: redis.Redis, store: JobStore
) -> None:
    submit(store, "gen_1", labels={"who": "SECRET"})
    store.claim("default", "e0", "agent")
    assert store.erase("ada", "gen_1")
    image = ResultImage(index=0, seed=1, width_px=64, height_px=64, key="ada/2026/11/gen_1/e0/0.png")
    store.commit("gen_1", "e0", Outcome(Status.SUCCEEDED, images=(image,), timings=Timings()))
    stored = redis_client.hgetall(key("job", "gen_1"))
    assert stored["status"] == "canceled"
    assert "SECRET" not in str(stored)
    assert "red circle" not in str(stored)
    assert "0.png" not in str(stored)
    assert store.due_erasures() == ["ada/2026/11/gen_1/"]
    assert store.due_erasures() == []
    assert store.forget("ada/2026/11/gen_1/")
    assert redis_client.exists(key("job", "gen_1")) == 0


def test_a_record_is_due_when_its_retention_is_over(store: JobStore, clock: QueueClock) -> None:
    submit(store, "gen_1", retain_ms=60_000)
    claim_all(store, 1)
    clock.now_ms += 59_999
    assert store.due_erasures() == []
    clock.now_ms += 1
    assert store.due_erasures() == ["ada/2026/11/gen_1/"]


def test_usage_counts_requests_images_and_device_time(
    redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    submit(store, "gen_1")
    store.claim("default", "e0", "agent")
    images = tuple(ResultImage(index=n, seed=n, width_px=64, height_px=64, key=f"k{n}") for n in range(3))
    outcome = Outcome(Status.SUCCEEDED, images=images, timings=Timings(gpu_s=1.25))
    store.commit("gen_1", "e0", outcome)
    store.commit("gen_1", "e0", outcome)
    usage = redis_client.hgetall(key("usage", "ada", str(clock.now_ms // 86_400_000)))
    assert usage == {"requests": "1", "images": "3", "gpu_ms": "1250"}


def test_two_claims_of_one_execution_are_one_job(store: JobStore) -> None:
    submit(store, "gen_1")
    submit(store, "gen_2")
    assert store.claim("default", "same", "agent") == store.claim("default", "same", "agent")
    other = store.claim("default", "other", "agent")
    assert other is not None
    assert other.id == "gen_2"


def test_a_redis_that_may_forget_is_named_with_what_to_do(redis_client: redis.Redis, store: JobStore) -> None:
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        concerns = {each.check: each.advice for each in store.server().concerns}
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")
    assert "noeviction" in concerns["Redis eviction"]
    # The session's server writes no file.
    assert "appendonly yes" in concerns["Redis persistence"]
