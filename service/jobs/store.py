"""The job store for agents and tools: a thin synchronous client over the scripts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import cast

import structlog
from redis import Redis

from service.contract.catalog import ModelCard
from service.contract.costs import MAX_KEPT, CallCost
from service.contract.job import Job, Status
from service.contract.previews import PREVIEW_MS
from service.contract.worker import WorkerRecord
from service.jobs import commands, documents
from service.jobs.commands import Argument
from service.jobs.costs import COSTS_TTL_MS, OVERGROWN, StoredCosts, device_key, entries, read_entries
from service.jobs.keys import key
from service.jobs.scripts import SCRIPT_NAMES, ScriptName, script_text

log = structlog.get_logger(__name__)

#: ms; five missed beats of 3 s lose a lease.
LEASE_MS = 15_000


class JobStore:
    """Everything an agent or a tool does to jobs. Thread-safe.

    `clock` gives milliseconds since 1970 and is for tests; without it Redis' own clock counts. `redis` must decode
    responses. Every method may be repeated after a lost reply.
    """

    def __init__(self, redis: Redis, *, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._clock = clock
        self._scripts = {name: redis.register_script(script_text(name)) for name in SCRIPT_NAMES}

    def _run(self, name: ScriptName, arguments: Sequence[Argument]) -> object:
        now = "" if self._clock is None else self._clock()
        return self._scripts[name](args=[now, *arguments])

    def submit(
        self,
        *jobs: Job,
        idempotency: commands.Idempotency | None = None,
        limits: commands.SubmitLimits,
    ) -> commands.Submission:
        """Accept jobs of one tenant, all or none, or say why not."""
        arguments = commands.submit_arguments(jobs, idempotency=idempotency, limits=limits, staged=())
        return commands.submission(cast("list[str]", self._run("submit", arguments)))

    def claim(
        self,
        pool: str,
        execution_id: str,
        agent_id: str,
        *,
        idle: bool = True,
        models: Collection[str] = (),
        warm: Collection[str] = (),
    ) -> Job | None:
        """Return the job that this execution now holds, or None where nothing fits now.

        `models`: those that can be drawn with (none = any); a job of another model is left to other agents. `warm`:
        those of them in memory (none = all alike); a cold one is passed over a bounded number of times, while something
        warm waits or another agent has it warm.
        """
        models_part = commands.claim_arguments(models, warm)
        arguments = [pool, execution_id, agent_id, LEASE_MS, "1" if idle else "0", *models_part]
        return commands.claimed_job(cast("list[str]", self._run("claim", arguments)))

    def renew(self, agent_id: str, holdings: Sequence[commands.Holding]) -> list[commands.RenewAnswer]:
        """Keep the leases of `holdings`, write their progress; return one answer each, in their order."""
        arguments = [agent_id, LEASE_MS, *commands.renew_arguments(holdings)]
        return cast("list[commands.RenewAnswer]", self._run("renew", arguments))

    def show_preview(self, job_id: str, execution_id: str, picture: bytes) -> bool:
        """Show what a job looks like so far (a WebP file); False where this execution does not hold it any more."""
        return self._run("preview", [job_id, execution_id, PREVIEW_MS, picture]) == 1

    def commit(self, job_id: str, execution_id: str, outcome: commands.Outcome) -> commands.CommitOutcome:
        """End a job with the result of an execution. Only `fenced` permits deleting that execution's objects."""
        reply = self._run("commit", commands.commit_arguments(job_id, execution_id, outcome))
        return cast("commands.CommitOutcome", reply)

    def release(self, job_id: str, execution_id: str, reason: commands.ReleaseReason) -> Status | None:
        """Give a job back; return its new status, or None where this execution no longer held it."""
        reply = cast("str", self._run("release", [job_id, execution_id, reason, *commands.bell_arguments()]))
        return None if reply == "fenced" else Status(reply)

    def reap(self, *, take_back: bool, limit: int = 100) -> commands.Reaped:
        """Do what time alone decides: expired leases (if `take_back`), deadlines, lost bells."""
        reply = self._run("reap", commands.reap_arguments(take_back=take_back, limit=limit))
        return commands.Reaped(*cast("list[int]", reply))

    def cancel(self, tenant: str, job_id: str) -> Job | None:
        """Cancel; return the job as it is then, None where this tenant has none such."""
        return self.get(tenant, job_id) if self._run("cancel", [tenant, job_id]) == 1 else None

    def erase(self, tenant: str, job_id: str) -> bool:
        """Mark a job to be erased and scrub what it asked for; False where this tenant has none such."""
        return self._run("erase", [tenant, job_id]) == 1

    def due_erasures(self, *, limit: int = 20, hold_ms: int = 60_000) -> list[str]:
        """Return object prefixes to erase; each is handed to nobody else for `hold_ms`."""
        return cast("list[str]", self._run("due_erasures", [limit, hold_ms]))

    def forget(self, prefix: str) -> bool:
        """Drop the record of a prefix whose objects are gone."""
        return self._run("forget", [prefix, prefix.rstrip("/").rpartition("/")[2]]) == 1

    def get(self, tenant: str, job_id: str) -> Job | None:
        """Return a job; None where it is unknown, another tenant's, or being erased."""
        fields = cast("dict[str, str]", self._redis.hgetall(key("job", job_id)))
        if fields.get("tenant") != tenant or fields.get("erase_requested") == "1":
            return None
        return documents.decode(fields)

    def unhold(self, tenant: str) -> None:
        """Let a tenant's waiting jobs be chosen again: its cap of running jobs was raised or taken away."""
        self._run("unhold", [tenant, *commands.bell_arguments()])

    def announce(self, record: WorkerRecord, cards: Iterable[ModelCard], *, ttl_ms: int) -> None:
        """Say that an agent lives and what it holds; its cards stay after it. Forgets agents that fell silent."""
        seconds, micros = self._redis.time()
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(key("agent", record.agent_id), record.model_dump_json(), px=ttl_ms)
        now_ms = seconds * 1000 + micros // 1000
        pipe.zremrangebyscore(key("agents"), "-inf", now_ms)
        pipe.zadd(key("agents"), {record.agent_id: now_ms + ttl_ms})
        for card in cards:
            pipe.hset(key("models"), card.id, card.model_dump_json())
            if card.id not in record.warm:
                pipe.zrem(key("warm", card.id), record.agent_id)
        for model_id in record.warm:
            name = key("warm", model_id)
            pipe.zremrangebyscore(name, "-inf", now_ms)
            pipe.zadd(name, {record.agent_id: now_ms + ttl_ms})
            # An agent whose engine was lost, or that was killed, says nothing more of its models.
            pipe.pexpire(name, ttl_ms)
        pipe.execute()

    def withdraw(self, agent_id: str) -> None:
        """Say that an agent is gone."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.delete(key("agent", agent_id))
        pipe.zrem(key("agents"), agent_id)
        pipe.execute()

    def server(self) -> commands.ServerState:
        """Return what Redis says of itself."""
        return commands.server_state(self._redis.info())

    def models(self) -> list[commands.RegisteredModel]:
        """Return every model a worker has shown, the default first."""
        cards = cast("dict[str, str]", self._redis.hgetall(key("models")))
        agents = cast("list[str]", self._redis.zrange(key("agents"), 0, -1))
        records = cast("list[str | None]", self._redis.mget([key("agent", a) for a in agents])) if agents else []
        return commands.registered_models(cards, records)

    def remove_model(self, model_id: str) -> bool:
        """Take a model off the list that gateways offer."""
        self._redis.delete(key("warm", model_id))
        return self._redis.hdel(key("models"), model_id) == 1

    def keep_costs(self, device_name: str, costs: Iterable[CallCost]) -> None:
        """Keep what calls were measured to cost on such a device, for some weeks; the oldest make room."""
        name = key("costs", device_key(device_name))
        pipe = self._redis.pipeline(transaction=True)
        pipe.hset(name, items=entries(costs, now_s=int(time.time())))
        pipe.pexpire(name, COSTS_TTL_MS)
        pipe.hlen(name)
        if cast("int", pipe.execute()[-1]) > MAX_KEPT:
            self._stored_costs(name)

    def costs(self, device_name: str) -> tuple[CallCost, ...]:
        """Return what calls are known to cost on such a device."""
        return self._stored_costs(key("costs", device_key(device_name))).costs

    def _stored_costs(self, name: str) -> StoredCosts:
        """Return what a hash of costs holds, and take away what is damaged or too much."""
        if self._redis.hlen(name) > OVERGROWN:
            log.error("costs_overgrown", hash=name)
            self._redis.delete(name)
        stored = read_entries(cast("dict[str, str]", self._redis.hgetall(name)), now_s=int(time.time()))
        if stored.damaged:
            log.error("costs_damaged", hash=name, entries=len(stored.damaged))
        if stored.surplus:
            self._redis.hdel(name, *stored.surplus)
        return stored
