"""Callers, agents and senders do their worst to events: every end is told, in order, of nothing that was erased.

Hypothesis chooses who does what and when, with a clock of its own. A sender that crashes never records what it took;
one that is late records it when another has it already.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis as AsyncRedis

from service.contract.job import Status
from service.jobs.commands import Holding, Outcome
from service.jobs.keys import key
from service.jobs.outbox import Attempt, DueEvent, Room, Verdict, WebhookOutbox
from service.jobs.store import JobStore
from tests.jobs import ROOM, make_job
from tests.outbox import ALL, DAY_MS, LEASE_MS

URLS = ("https://one.example.com/", "https://two.example.com/")
TENANTS = ("ada", "bob")
CHANGES = st.sampled_from(["deliver", "fail", "busy"])


@dataclass
class Told:
    """What the test knows of one job."""

    tenant: str
    wants: tuple[str, ...]
    erased: bool = False
    #: Revisions as receivers saw them, of what was delivered.
    revisions: list[int] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)


class Outboxes(RuleBasedStateMachine):
    url = ""

    jobs = Bundle("jobs")
    running = Bundle("running")
    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.redis = redis.Redis.from_url(self.url, decode_responses=True)
        self.redis.flushdb()
        self.now_ms = 1_800_000_000_000
        self.store = JobStore(self.redis, clock=lambda: self.now_ms)
        self.runner = asyncio.Runner()
        self.async_redis = AsyncRedis.from_url(self.url, decode_responses=True)
        self.outbox = WebhookOutbox(self.async_redis, clock=lambda: self.now_ms)
        self.told: dict[str, Told] = {}
        self.steps = 0

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.runner.run(self.async_redis.aclose())
            self.runner.close()
            self.redis.close()

    @rule(
        target=jobs,
        tenant=st.sampled_from(TENANTS),
        url=st.sampled_from(URLS),
        wants=st.lists(st.sampled_from(ALL), min_size=1, max_size=3, unique=True),
    )
    def submit(self, tenant, url, wants):
        job_id = f"gen_{len(self.told)}"
        job = make_job(job_id, tenant=tenant, webhook_url=url, webhook_events=wants, retain_ms=30 * DAY_MS)
        assert self.store.submit(job, limits=ROOM).outcome == "created"
        self.told[job_id] = Told(tenant, tuple(wants))
        return job_id

    @rule(target=running)
    def claim(self):
        self.steps += 1
        job = self.store.claim("default", f"exe{self.steps}", "agent")
        return multiple() if job is None else (job.id, str(job.execution_id))

    @rule(held=running)
    def renew(self, held):
        self.steps += 1
        self.store.renew("agent", [Holding(*held, self.steps, 10_000, "denoise")])

    @rule(held=running)
    def give_back(self, held):
        self.store.release(*held, "drained")

    @rule(held=running, status=st.sampled_from([Status.SUCCEEDED, Status.FAILED]))
    def commit(self, held, status):
        self.store.commit(*held, Outcome(status))

    @rule(job_id=jobs)
    def cancel(self, job_id):
        self.store.cancel(self.told[job_id].tenant, job_id)

    @rule(job_id=jobs)
    def erase(self, job_id):
        self.store.erase(self.told[job_id].tenant, job_id)
        self.told[job_id].erased = True

    @rule(target=taken, most=st.integers(1, 5))
    def take(self, most):
        events = self.due(Room(most, max(1, most // 2), 2, 4))
        return multiple(*[(event, self.now_ms) for event in events])

    @rule(what=consumes(taken), change=CHANGES, late_s=st.sampled_from([0, 1, 10, 44, 60]))
    def record(self, what, change, late_s):
        event, _ = what
        self.now_ms += 1000 * late_s
        self.send(event, change)

    @rule(what=consumes(taken))
    def sender_dies(self, what):
        """It is not heard of again."""

    @rule(seconds=st.integers(1, 90))
    def time_passes(self, seconds):
        self.now_ms += 1000 * seconds

    def due(self, room: Room) -> list[DueEvent]:
        events = self.runner.run(self.outbox.due(room, lease_ms=LEASE_MS))
        for event in events:
            assert event.job is not None
            told = self.told[event.job.id]
            assert not told.erased
            kind = event.type.removeprefix("generation.")
            assert (kind if kind in ALL else "completed") in told.wants
            assert event.job.ended or kind in ALL
        # Of one job nothing is in two hands at a time.
        flying = Counter(
            name.split("_")[2]
            for tenant in TENANTS
            for name in self.redis.zrangebyscore(key("tenant_sending", tenant), self.now_ms + 1, "+inf")
        )
        assert all(count == 1 for count in flying.values())
        return events

    def send(self, event: DueEvent, change: str) -> None:
        verdict: Verdict = "delivered" if change == "deliver" else "failed"
        retry_ms = None if event.type == "generation.progress" else 5000
        attempt = Attempt(
            verdict, at_ms=self.now_ms, duration_ms=1, retry_ms=retry_ms, hold_ms=3000 if change == "busy" else 0
        )
        recorded = self.runner.run(self.outbox.record(event, attempt, failing_off_ms=1000 * DAY_MS))
        assert event.job is not None
        told = self.told[event.job.id]
        assert (recorded.outcome == "erased") <= (told.erased or event.type == "generation.progress")
        if verdict == "delivered" and recorded.outcome == "recorded":
            told.ids.add(event.id)
            told.revisions.append(int(self.redis.hget(key("event", event.id), "revision") or 0))

    @invariant()
    def what_is_pending_is_in_its_queue_and_its_endpoint_in_the_outbox(self):
        pending: dict[str, set[str]] = {}
        for name in self.redis.scan_iter(key("event", "*")):
            event = self.redis.hgetall(name)
            assert not self.told[event["job"]].erased
            if event["state"] == "pending":
                pending.setdefault(event["endpoint"], set()).add(name.removeprefix(key("event", "")))
        assert set(self.redis.zrange(key("outbox"), 0, -1)) == set(pending)
        for endpoint, events in pending.items():
            assert set(self.redis.zrange(key("endpoint_queue", endpoint), 0, -1)) == events

    @invariant()
    def events_of_a_job_arrive_in_the_order_of_its_revision(self):
        for told in self.told.values():
            assert told.revisions == sorted(told.revisions)

    def drain(self) -> None:
        """Every job ends, every receiver is well again: each end is told."""
        for _ in range(400):
            self.now_ms += LEASE_MS
            self.store.reap(take_back=True)
            if job := self.store.claim("default", f"end{self.now_ms}", "last"):
                self.store.commit(job.id, str(job.execution_id), Outcome(Status.SUCCEEDED))
            for event in self.due(Room(50, 50, 4, 8)):
                self.send(event, "deliver")
            if not self.redis.exists(key("outbox"), key("leases")) and job is None:
                break
        self.what_is_pending_is_in_its_queue_and_its_endpoint_in_the_outbox()
        self.events_of_a_job_arrive_in_the_order_of_its_revision()
        assert self.redis.exists(key("outbox")) == 0
        for job_id, told in self.told.items():
            status = self.redis.hget(key("job", job_id), "status")
            if "completed" in told.wants and not told.erased:
                assert f"evt_{job_id}_{status}" in told.ids


def test_every_end_is_told_in_order_whatever_senders_do(valkey_url: str) -> None:
    Outboxes.url = valkey_url
    run_state_machine_as_test(
        Outboxes,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
