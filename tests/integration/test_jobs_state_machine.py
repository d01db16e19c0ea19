"""Clients, agents and reapers do their worst against a real Valkey: whatever they do, every job ends once.

Hypothesis chooses who does what and when, with a clock of its own. Lost replies are calls made twice, or replies thrown
away; crashed agents simply never speak again, or speak too late.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
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

from service.contract.job import PRIORITIES, TERMINAL, TRANSITIONS, Job, JobError, Status
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import Holding, Idempotency, Outcome, SubmitLimits
from service.jobs.keys import key
from service.jobs.store import LEASE_MS, JobStore
from tests.jobs import make_job

POOLS = ("default", "xl")
TENANTS = ("ada", "bob", "eve")
RUNNING_CAP = {"bob": 2}
FEW = st.integers(1, 3)


@dataclass
class Seen:
    """What the test knows of one job from replies alone."""

    tenant: str
    statuses: list[str] = field(default_factory=lambda: ["queued"])
    committed: list[str] = field(default_factory=list)
    canceled_while_queued: bool = False
    erased: bool = False
    forgotten: bool = False


class Queue(RuleBasedStateMachine):
    url = ""

    jobs = Bundle("jobs")
    executions = Bundle("executions")

    def __init__(self) -> None:
        super().__init__()
        self.redis = redis.Redis.from_url(self.url, decode_responses=True)
        self.redis.flushdb()
        self.now_ms = 1_800_000_000_000
        self.store = JobStore(self.redis, clock=lambda: self.now_ms)
        self.runner = asyncio.Runner()
        self.async_redis = AsyncRedis.from_url(self.url, decode_responses=True)
        self.async_store = AsyncJobStore(self.async_redis, clock=lambda: self.now_ms)
        self.seen: dict[str, Seen] = {}
        self.numbers = Counter[str]()
        for tenant, cap in RUNNING_CAP.items():
            self.redis.hset(key("tenant", tenant), "max_running", cap)

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.runner.run(self.async_redis.aclose())
            self.runner.close()
            self.redis.close()

    def number(self, what: str) -> int:
        self.numbers[what] += 1
        return self.numbers[what]

    # ── clients ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        target=jobs,
        tenant=st.sampled_from(TENANTS),
        pool=st.sampled_from(POOLS),
        priority=st.sampled_from(PRIORITIES),
        cost=st.integers(1, 50),
        start_s=st.none() | st.integers(1, 40),
        finish_s=st.none() | st.integers(1, 60),
        webhook=st.booleans(),
        times=st.integers(1, 2),
    )
    def submit(self, tenant, pool, priority, cost, start_s, finish_s, webhook, times):
        job = make_job(
            f"gen_{self.number('job')}",
            tenant=tenant,
            pool=pool,
            priority=priority,
            cost=cost,
            created_ms=self.now_ms - 77,  # a gateway's clock that is late
            start_by_ms=None if start_s is None else self.now_ms - 77 + 1000 * start_s,
            finish_by_ms=None if finish_s is None else self.now_ms - 77 + 1000 * finish_s,
            webhook_url="https://example.com/hook" if webhook else None,
            webhook_events=("started", "progress", "completed"),
        )
        for _ in range(times):
            reply = self.runner.run(self.async_store.submit(job, idempotency=None, limits=SubmitLimits(None, 1000)))
            assert (reply.outcome, reply.job_ids) == ("created", (job.id,))
        self.seen[job.id] = Seen(tenant)
        return job.id

    @rule(target=jobs, tenant=st.sampled_from(TENANTS), name=FEW, body=FEW, size=FEW)
    def submit_with_key(self, tenant, name, body, size):
        many = [make_job(f"gen_{self.number('job')}", tenant=tenant, created_ms=self.now_ms) for _ in range(size)]
        once = Idempotency(record=f"key{name}", body_sha256=f"body{body}", ttl_s=86_400)
        reply = self.runner.run(self.async_store.submit(*many, idempotency=once, limits=SubmitLimits(None, 1000)))
        if reply.outcome == "created":
            assert reply.job_ids == tuple(job.id for job in many)
            self.seen |= {job.id: Seen(tenant) for job in many}
            return multiple(*reply.job_ids)
        assert self.redis.exists(*[key("job", job.id) for job in many]) == 0
        earlier = [self.seen[job_id] for job_id in reply.job_ids]
        assert {seen.tenant for seen in earlier} == {tenant}
        lost = any(seen.erased or seen.forgotten for seen in earlier)
        assert reply.outcome in {"mismatch", "gone" if lost else "replayed"}
        return multiple()

    @rule(job_id=jobs)
    def cancel(self, job_id):
        seen = self.seen[job_id]
        was = self.redis.hget(key("job", job_id), "status")
        job = self.runner.run(self.async_store.cancel(seen.tenant, job_id))
        if seen.erased or seen.forgotten:
            assert job is None
        else:
            assert job is not None
            assert job.ended == (was != "running")
            if was == "queued":
                assert job.status is Status.CANCELED
                seen.canceled_while_queued = True

    @rule(job_id=jobs)
    def cancel_by_a_stranger(self, job_id):
        before = self.redis.hgetall(key("job", job_id))
        assert self.store.cancel("mallory", job_id) is None
        assert not self.store.erase("mallory", job_id)
        assert self.redis.hgetall(key("job", job_id)) == before

    @rule(job_id=jobs)
    def erase(self, job_id):
        seen = self.seen[job_id]
        assert self.runner.run(self.async_store.erase(seen.tenant, job_id)) == (not seen.forgotten)
        seen.erased = True
        assert self.store.get(seen.tenant, job_id) is None
        assert not self.redis.hget(key("job", job_id), "spec")

    # ── agents ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        target=executions,
        pool=st.sampled_from(POOLS),
        agent=st.sampled_from(["agent1", "agent2"]),
        idle=st.booleans(),
        times=st.integers(1, 3),
    )
    def claim(self, pool, agent, idle, times):
        execution = f"exec{self.number('execution')}"
        replies = [self.store.claim(pool, execution, agent, idle=idle) for _ in range(times)]
        job = replies[0]
        if job is None:
            return multiple()
        assert all(reply is not None and reply.id == job.id for reply in replies)
        assert job.status is Status.RUNNING
        assert job.pool == pool
        assert job.execution_id == execution
        assert idle or not job.suspect
        seen = self.seen[job.id]
        assert not seen.canceled_while_queued
        assert not seen.erased
        cap = RUNNING_CAP.get(job.tenant)
        assert cap is None or int(self.redis.hget(key("tenant_counts", job.tenant), "running") or 0) <= cap
        return (job.id, execution, agent)

    @rule(held=executions, step=st.integers(0, 4), late_s=st.integers(0, 20))
    def renew(self, held, step, late_s):
        job_id, execution, agent = held
        self.now_ms += 1000 * late_s
        holds = self.holds(job_id, execution)
        (answer,) = self.store.renew(agent, [Holding(job_id, execution, step, 4, "denoise")])
        assert (answer != "fenced") == holds
        assert self.store.show_preview(job_id, execution, execution.encode()) == (answer == "ok")
        if holds:
            assert self.redis.zscore(key("leases"), job_id) == self.now_ms + LEASE_MS

    @rule(
        held=executions,
        status=st.sampled_from([Status.SUCCEEDED, Status.FAILED, Status.CANCELED]),
        late_s=st.integers(0, 30),
        times=st.integers(1, 2),
    )
    def commit(self, held, status, late_s, times):
        job_id, execution, _ = held
        self.now_ms += 1000 * late_s
        holds = self.holds(job_id, execution)
        error = JobError(code="internal", message="m", retryable=True) if status is Status.FAILED else None
        replies = [self.store.commit(job_id, execution, Outcome(status, error=error)) for _ in range(times)]
        seen = self.seen[job_id]
        if holds:
            assert replies[0] == "committed"
            seen.committed.append(execution)
        elif seen.committed == [execution] and not seen.forgotten:
            assert replies[0] == "already_committed"
        else:
            assert replies[0] == "fenced"
        assert replies[1:] in ([], ["already_committed"], ["fenced"])
        if times == 2 and replies[0] != "fenced":
            assert replies[1] == "already_committed"

    @rule(held=executions, reason=st.sampled_from(["drained", "engine_lost"]))
    def release(self, held, reason):
        job_id, execution, _ = held
        before, holds = self.redis.hgetall(key("job", job_id)), self.holds(job_id, execution)
        status = self.store.release(job_id, execution, reason)
        assert (status is not None) == holds
        if not holds:
            assert self.redis.hgetall(key("job", job_id)) == before
        elif status is Status.QUEUED:
            after = self.redis.hgetall(key("job", job_id))
            assert after["sequence"] == before["sequence"]
            assert int(after["attempt"]) == int(before["attempt"]) - (reason == "drained")
            assert (after["suspect"] == "1") == (reason == "engine_lost" or before["suspect"] == "1")

    @rule(held=consumes(executions))
    def agent_dies(self, held):
        """Nobody speaks for this execution any more."""

    # ── reapers and time ──────────────────────────────────────────────────────────────────────────────────────────────

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds):
        self.now_ms += 1000 * seconds

    @rule(take_back=st.booleans(), asynchronous=st.booleans())
    def reap(self, take_back, asynchronous):
        if asynchronous:
            self.runner.run(self.async_store.reap(take_back=take_back))
        else:
            self.store.reap(take_back=take_back)
        if take_back:
            overdue = self.redis.zrangebyscore(key("leases"), "-inf", self.now_ms)
            assert overdue == []
        assert self.redis.zrangebyscore(key("deadlines"), "-inf", self.now_ms) == []
        for pool in POOLS:
            queued = int(self.redis.hget(key("pool", pool), "queued") or 0)
            choosable = any(self.redis.exists(key("active", pool, priority)) for priority in PRIORITIES)
            assert not choosable or self.redis.llen(key("rq_queue", pool)) >= queued

    @rule()
    def bells_are_lost(self):
        for pool in POOLS:
            self.redis.delete(key("rq_queue", pool))

    @rule(crash=st.booleans())
    def erasures(self, crash):
        for prefix in self.store.due_erasures():
            if crash:
                continue
            job_id = prefix.split("/")[-2]
            assert self.store.forget(prefix)
            self.seen[job_id].forgotten = True
            assert self.redis.exists(key("job", job_id)) == 0

    # ── what must always hold ─────────────────────────────────────────────────────────────────────────────────────────

    def holds(self, job_id: str, execution: str) -> bool:
        return self.redis.hmget(key("job", job_id), "status", "execution_id") == ["running", execution]

    def documents(self) -> dict[str, dict[str, str]]:
        names = sorted(self.redis.scan_iter(key("job", "*")))
        return {name.removeprefix(key("job", "")): self.redis.hgetall(name) for name in names}

    @invariant()
    def no_terminal_state_is_ever_left(self):
        for job_id, document in self.documents().items():
            statuses = self.seen[job_id].statuses
            if document["status"] != statuses[-1]:
                assert Status(statuses[-1]) not in TERMINAL
                statuses.append(document["status"])

    @invariant()
    def every_job_is_committed_at_most_once(self):
        for seen in self.seen.values():
            assert len(seen.committed) <= 1

    @invariant()
    def every_accepted_job_is_still_there(self):
        kept = self.documents().keys()
        assert {job_id for job_id, seen in self.seen.items() if not seen.forgotten} == set(kept)

    @invariant()
    def counters_count(self):
        tenants: defaultdict[str, Counter[str]] = defaultdict(Counter)
        pools: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for document in self.documents().values():
            tenants[document["tenant"]][document["status"]] += 1
            pools[document["pool"]][document["status"]] += 1
        for name, counts, names in (("tenant_counts", tenants, TENANTS), ("pool", pools, POOLS)):
            for part in names:
                stored = self.redis.hmget(key(name, part), "queued", "running")
                assert [int(value or 0) for value in stored] == [counts[part]["queued"], counts[part]["running"]]

    @invariant()
    def every_job_is_where_its_status_says(self):
        queued, running = defaultdict(set), set()
        previews = {name: self.redis.get(name) for name in self.redis.keys(key("preview", "*"))}
        for job_id, document in self.documents().items():
            if preview := previews.pop(key("preview", job_id), None):
                found = document["status"], document["cancel_requested"], document["execution_id"]
                assert found == ("running", "0", preview)
            if document["status"] == "queued":
                queued[document["pool"], document["priority"], document["tenant"]].add(job_id)
            elif document["status"] == "running":
                running.add(job_id)
                assert self.redis.hget(key("executions"), document["execution_id"]) == job_id
            else:
                assert self.redis.zscore(key("erasures"), document["object_prefix"]) is not None
        assert previews == {}
        assert set(self.redis.zrange(key("leases"), 0, -1)) == running
        assert self.redis.hlen(key("executions")) == len(running)
        for pool in POOLS:
            for priority in PRIORITIES:
                choosable = set(self.redis.zrange(key("active", pool, priority), 0, -1))
                for tenant in TENANTS:
                    stored = set(self.redis.zrange(key("queue", pool, priority, tenant), 0, -1))
                    assert stored == queued[pool, priority, tenant]
                    held = self.redis.sismember(key("tenant_held", tenant), f"{pool} {priority}") == 1
                    assert (tenant in choosable) + held == bool(stored)

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """Everybody comes back to life and finishes; then nothing is left but tenants, pools and idempotency keys."""
        for _ in range(200):
            self.now_ms += LEASE_MS + 1
            self.store.reap(take_back=True)
            claimed = [
                (self.store.claim(pool, f"exec{self.number('execution')}", "last"), pool)
                for pool in POOLS
                for _ in "12"
            ]
            jobs: list[Job] = [job for job, _ in claimed if job is not None]
            for job in jobs:
                assert job.execution_id
                assert self.store.commit(job.id, job.execution_id, Outcome(Status.SUCCEEDED)) == "committed"
                self.seen[job.id].committed.append(job.execution_id)
            if not jobs and self.redis.zcard(key("leases")) == 0:
                break
        for job_id, document in self.documents().items():
            assert Status(document["status"]) in TERMINAL, (job_id, document["status"])
            assert len(self.seen[job_id].committed) <= 1
        self.every_job_is_where_its_status_says()
        self.counters_count()
        self.now_ms += 10**9
        while due := self.store.due_erasures():
            for prefix in due:
                self.store.forget(prefix)
        # What bells leave is RQ's; endpoints stay known, of their events nothing is left.
        left = {name for name in self.redis.scan_iter("dr:*") if not re.fullmatch(r"dr:.+:(endpoints|ep_\w+)", name)}
        kept = {key("pools"), *(key("pool", pool) for pool in POOLS), *(key("tenant", t) for t in RUNNING_CAP)}
        kept |= {key("tenant_counts", tenant) for tenant in TENANTS}
        idle = {key("idle", pool, priority) for pool in POOLS for priority in PRIORITIES}
        remembered = {name for name in left if name.startswith(("dr:idem:", "dr:usage:", "dr:ended:"))}
        assert left - kept - idle - remembered == set()
        assert all(self.redis.ttl(name) > 0 for name in remembered)


def test_every_job_ends_once_whatever_clients_agents_and_reapers_do(valkey_url: str) -> None:
    Queue.url = valkey_url
    run_state_machine_as_test(
        Queue,
        settings=settings(
            max_examples=120,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_the_transition_table_leaves_no_terminal_state() -> None:
    assert all(not TRANSITIONS[status] for status in TERMINAL)
    assert set(TRANSITIONS) == set(Status)
