"""Accepting a generation: check everything, store the input pictures, then one script that accepts it or not."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.contract.errors import (
    Gone,
    IdempotencyMismatch,
    InvalidRequest,
    Overloaded,
    RateLimited,
)
from service.contract.job import Job
from service.contract.rate import RequestRate
from service.generations.admission import Admission
from service.generations.idempotency import IdempotentCall
from service.generations.ids import GenerationIds, IdSource
from service.generations.inputs import InputPictures
from service.generations.models import ModelDirectory
from service.generations.specification import Draft, draft
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import Idempotency, Submission, SubmitLimits
from service.storage.keys import job_prefix
from service.tenants.authentication import Caller

_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class SubmitRules:
    """What this server takes."""

    #: s; where the request does not say, and at most.
    retain_s: int
    retain_max_s: int
    #: Jobs waiting in one pool.
    pool_queued: int


@dataclass(frozen=True, slots=True)
class Submitted:
    """An accepted generation."""

    job: Job
    #: It was accepted before, under the same Idempotency-Key.
    replayed: bool
    #: What is left of the tenant's rate; None where it has none, or nobody asked.
    rate: RequestRate | None = None


class SubmitGeneration:
    """The use case. One round trip to Redis where there are no input pictures."""

    def __init__(
        self,
        *,
        store: AsyncJobStore,
        inputs: InputPictures,
        models: ModelDirectory,
        ids: IdSource,
        admission: Admission,
        rules: SubmitRules,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store = store
        self._inputs = inputs
        self._models = models
        self._ids = ids
        self._admission = admission
        self._rules = rules
        self._now_ms = now_ms

    async def submit(
        self, caller: Caller, body: Mapping[str, Any], *, call: IdempotentCall | None, request_id: str
    ) -> Submitted:
        """Accept what a body asks for.

        Raises `InvalidRequest` with every wrong field, `IdempotencyMismatch`, `Gone` for the key of an erased job,
        `RateLimited`, `LimitReached`, `Overloaded`, `Unavailable`. After any of them nothing is queued.
        """
        try:
            cards = await self._models.cards()
            drafted = draft(body, cards, draw_seed=secrets.randbelow, retain_max_s=self._rules.retain_max_s)
            await self._admission.check(drafted.card.pool)
            pictures = await self._inputs.read(caller, drafted.request)
            job = self._job(await self._ids.ids(), caller, drafted, request_id)
            if pictures:
                await self._inputs.stage(caller.tenant, [job.object_prefix])
        except (InvalidRequest, Overloaded, RateLimited) as err:
            # What was accepted once stays accepted, also where it would be refused today.
            earlier = call and await self._store.recall(caller.tenant, _idempotency(call, 0))
            if earlier:
                return Submitted(earlier[0], replayed=True, rate=err.rate if isinstance(err, RateLimited) else None)
            raise
        if not pictures:
            return await self._accept(job, call, None)
        prefix = job.object_prefix
        accepted = False
        try:
            stored = await self._inputs.keep(pictures, prefix)
            job = job.model_copy(update={"spec": job.spec.model_copy(update=stored)})
            submitted = await self._accept(job, call, prefix)
            accepted = not submitted.replayed
        finally:
            if not accepted:
                await self._inputs.discard([prefix])
        return submitted

    def _job(self, ids: GenerationIds, caller: Caller, drafted: Draft, request_id: str) -> Job:
        request, now_ms = drafted.request, self._now_ms()
        job_id = ids.new(caller.tenant, now_ms)
        return Job(
            id=job_id,
            tenant=caller.tenant,
            pool=drafted.card.pool,
            priority=caller.limits.capped(request.priority or "normal"),
            cost=drafted.cost,
            model=drafted.card.id,
            spec=drafted.spec,
            object_prefix=job_prefix(caller.tenant, now_ms, job_id),
            created_ms=now_ms,
            start_by_ms=_after(now_ms, request.start_within_s),
            finish_by_ms=_after(now_ms, request.finish_within_s),
            retain_ms=1000 * (request.retain_s or self._rules.retain_s),
            labels=request.labels or {},
            request_id=request_id,
        )

    async def _accept(self, job: Job, call: IdempotentCall | None, prefix: str | None) -> Submitted:
        submission = await self._store.submit(
            job,
            idempotency=call and _idempotency(call, job.retain_ms // 1000),
            limits=SubmitLimits(tenant_queued=None, pool_queued=self._rules.pool_queued),
            staged=[prefix] if prefix else [],
        )
        if submission.outcome == "created":
            return Submitted(_by_the_clock_of_redis(job, submission), replayed=False, rate=submission.rate)
        return Submitted(await self._earlier(job, submission), replayed=True, rate=submission.rate)

    async def _earlier(self, sent: Job, submission: Submission) -> Job:
        """Return the job of a replayed call, or raise what any other outcome means."""
        match submission.outcome:
            case "mismatch":
                raise IdempotencyMismatch
            case "rate_limited" if submission.rate:
                raise RateLimited(submission.rate)
            case "tenant_full":
                raise await self._admission.tenant_full(sent.tenant)
            case "pool_full":
                raise await self._admission.pool_full(sent.pool)
            case _:
                jobs = await self._store.get_all(sent.tenant, submission.job_ids)
                if not jobs:
                    raise Gone("The generation of this Idempotency-Key was erased.")
                return jobs[0]


def _idempotency(call: IdempotentCall, retain_s: int) -> Idempotency:
    return Idempotency(call.record, call.body_sha256, max(_DAY_S, retain_s))


def _by_the_clock_of_redis(job: Job, submission: Submission) -> Job:
    """Return the job as it was stored: this gateway's clock only measured spans."""
    if submission.created_ms is None:
        return job
    skew_ms = submission.created_ms - job.created_ms
    return job.model_copy(
        update={
            "created_ms": submission.created_ms,
            "ahead": next(iter(submission.aheads), 0),
            "start_by_ms": None if job.start_by_ms is None else job.start_by_ms + skew_ms,
            "finish_by_ms": None if job.finish_by_ms is None else job.finish_by_ms + skew_ms,
        }
    )


def _after(now_ms: int, seconds: int | None) -> int | None:
    return None if seconds is None else now_ms + 1000 * seconds
