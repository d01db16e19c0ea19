"""Accepting generations: check everything, store the input pictures, then one script that accepts it or not."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.contract.catalog import ModelCard
from service.contract.errors import (
    Gone,
    IdempotencyMismatch,
    InvalidRequest,
    LimitReached,
    Overloaded,
    QuotaExceeded,
    RateLimited,
)
from service.contract.job import Job
from service.contract.rate import RequestRate
from service.generations.admission import Admission, rate_refusal
from service.generations.idempotency import IdempotentCall
from service.generations.ids import GenerationIds, IdSource
from service.generations.inputs import InputPictures
from service.generations.models import ModelDirectory
from service.generations.specification import Draft, draft
from service.generations.staged import StagedInputs
from service.generations.webhook_target import too_many_endpoints, webhook_fields
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import Idempotency, Submission, SubmitLimits
from service.storage.keys import job_prefix
from service.telemetry.context import current_traceparent
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
    """Accepted generations, in the order of their requests."""

    jobs: Sequence[Job]
    #: They were accepted before, under the same Idempotency-Key.
    replayed: bool
    #: What is left of the tenant's rate; None where it has none, or nobody asked.
    rate: RequestRate | None = None

    @property
    def job(self) -> Job:
        """The one of a call that creates one."""
        return self.jobs[0]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What would become of a request if it were submitted now."""

    card: ModelCard
    #: As it would be; of its pictures only what is known without fetching them.
    job: Job
    #: What it would be refused with; None where it would be accepted.
    refusal: LimitReached | Overloaded | None
    rate: RequestRate | None


#: Returns checked requests, one at least; raises `InvalidRequest` with everything that is wrong.
Drafting = Callable[[Sequence[ModelCard]], Awaitable[Sequence[Draft]]]


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
        check_url: Callable[[str], object],
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`check_url` raises `UrlRefused` for what may not be called."""
        self._store = store
        self._inputs = inputs
        self._models = models
        self._ids = ids
        self._admission = admission
        self._rules = rules
        self._check_url = check_url
        self._now_ms = now_ms

    async def submit(
        self, caller: Caller, body: Mapping[str, Any], *, call: IdempotentCall | None, request_id: str
    ) -> Submitted:
        """Accept what a body asks for; raises as `submit_all`."""

        async def drafting(cards: Sequence[ModelCard]) -> Sequence[Draft]:
            return [self.draft(body, cards)]

        return await self.submit_all(caller, drafting, call=call, request_id=request_id)

    def draft(self, body: Mapping[str, Any], cards: Sequence[ModelCard]) -> Draft:
        """Return the checked request of a body; raises `InvalidRequest` with every wrong field."""
        return draft(
            body,
            cards,
            draw_seed=secrets.randbelow,
            retain_max_s=self._rules.retain_max_s,
            check_url=self._check_url,
        )

    async def rehearse(self, caller: Caller, body: Mapping[str, Any], *, request_id: str) -> Rehearsal:
        """Return what would become of a body now; nothing is stored, fetched or used.

        Raises `InvalidRequest` with every wrong field, `Unavailable`.
        """
        drafted = self.draft(body, await self._models.cards())
        [job] = self._jobs(await self._ids.ids(), caller, [drafted], request_id)
        pictures = await self._inputs.look(caller, drafted.request)
        submission = await self._store.rehearse(job, pool_queued=self._rules.pool_queued)
        changed = {"spec": job.spec.model_copy(update=pictures), "ahead": next(iter(submission.aheads), 0)}
        refusal: LimitReached | Overloaded | None = None
        try:
            await self._admission.check(drafted.card.pool)
            if submission.outcome != "created":
                await self._earlier(caller, [job], submission)
        except (LimitReached, Overloaded) as err:
            refusal = err
        return Rehearsal(drafted.card, job.model_copy(update=changed), refusal, submission.rate)

    async def submit_all(
        self, caller: Caller, drafting: Drafting, *, call: IdempotentCall | None, request_id: str
    ) -> Submitted:
        """Accept every request that is drafted, or none.

        Raises `InvalidRequest` with every wrong field, `IdempotencyMismatch`, `Gone` for the key of an erased job,
        `RateLimited`, `LimitReached`, `Overloaded`, `Unavailable`. After any of them nothing is queued.
        """
        staged = StagedInputs(self._inputs, caller)
        try:
            try:
                drafts = await drafting(await self._models.cards())
                for pool in {each.card.pool for each in drafts}:
                    await self._admission.check(pool)
                jobs = self._jobs(await self._ids.ids(), caller, drafts, request_id)
                if call and any(each.copied or each.request.refers_to_pictures for each in drafts):
                    # What they refer to may be gone by now, and costs more than the question.
                    earlier = await self._store.recall(caller.tenant, _idempotency(call, 0))
                    if earlier:
                        return Submitted(earlier, replayed=True)
                jobs = await staged.fill(drafts, jobs)
            except (InvalidRequest, LimitReached, Overloaded, Gone) as err:
                # What was accepted once stays accepted, also where it would be refused today.
                earlier = call and await self._store.recall(caller.tenant, _idempotency(call, 0))
                if earlier:
                    return Submitted(earlier, replayed=True, rate=err.rate if isinstance(err, RateLimited) else None)
                raise
            submitted = await self._accept(caller, jobs, call, staged.prefixes)
            if not submitted.replayed:
                await staged.accepted()
            return submitted
        finally:
            await staged.discard()

    def _jobs(self, ids: GenerationIds, caller: Caller, drafts: Sequence[Draft], request_id: str) -> list[Job]:
        """Return the jobs in order. So are their ids, by which those of one moment are listed."""
        now_ms = self._now_ms()
        job_ids = sorted(ids.new(caller.tenant, now_ms) for _ in drafts)
        return [
            self._job(job_id, caller, each, now_ms, request_id) for job_id, each in zip(job_ids, drafts, strict=True)
        ]

    def _job(self, job_id: str, caller: Caller, drafted: Draft, now_ms: int, request_id: str) -> Job:
        request = drafted.request
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
            rerun_of=drafted.rerun_of,
            request_id=request_id,
            traceparent=current_traceparent(),
            **webhook_fields(drafted, caller.webhook),
        )

    async def _accept(
        self, caller: Caller, jobs: Sequence[Job], call: IdempotentCall | None, prefixes: Collection[str]
    ) -> Submitted:
        submission = await self._store.submit(
            *jobs,
            idempotency=call and _idempotency(call, max(job.retain_ms for job in jobs) // 1000),
            limits=SubmitLimits(tenant_queued=None, pool_queued=self._rules.pool_queued),
            staged=prefixes,
        )
        if submission.outcome == "created":
            # A call that is repeated after a lost reply is not told again.
            aheads = submission.aheads or [0] * len(jobs)
            created = [
                _as_stored(job, submission.created_ms or job.created_ms, ahead)
                for job, ahead in zip(jobs, aheads, strict=True)
            ]
            return Submitted(created, replayed=False, rate=submission.rate)
        return Submitted(await self._earlier(caller, jobs, submission), replayed=True, rate=submission.rate)

    async def _earlier(self, caller: Caller, sent: Sequence[Job], submission: Submission) -> Sequence[Job]:
        """Return the jobs of a replayed call, or raise what any other outcome means."""
        match submission.outcome:
            case "mismatch":
                raise IdempotencyMismatch
            case "rate_limited" if submission.rate:
                raise rate_refusal(submission.rate, len(sent))
            case "quota_exceeded":
                raise QuotaExceeded(retry_after_s=submission.retry_after_s)
            case "tenant_full":
                raise await self._admission.tenant_full(caller, len(sent))
            case "endpoints_full":
                raise too_many_endpoints()
            case "pool_full":
                asked = sum(job.pool == submission.pool for job in sent)
                raise await self._admission.pool_full(submission.pool, asked, self._rules.pool_queued)
            case _:
                jobs = await self._store.get_all(caller.tenant, submission.job_ids)
                if not jobs:
                    raise Gone("A generation of this Idempotency-Key was erased.")
                return jobs


def _idempotency(call: IdempotentCall, retain_s: int) -> Idempotency:
    return Idempotency(call.record, call.body_sha256, max(_DAY_S, retain_s))


def _as_stored(job: Job, created_ms: int, ahead: int) -> Job:
    """Return the job as it was stored: this gateway's clock only measured spans."""
    skew_ms = created_ms - job.created_ms
    return job.model_copy(
        update={
            "created_ms": created_ms,
            "ahead": ahead,
            "start_by_ms": None if job.start_by_ms is None else job.start_by_ms + skew_ms,
            "finish_by_ms": None if job.finish_by_ms is None else job.finish_by_ms + skew_ms,
        }
    )


def _after(now_ms: int, seconds: int | None) -> int | None:
    return None if seconds is None else now_ms + 1000 * seconds
