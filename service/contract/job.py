"""The job document: one durable record per generation, and the only ways it may change.

`TRANSITIONS` is written here once. The Lua scripts in `service.jobs` receive it when they are loaded, so that Redis
refuses exactly what `transition()` refuses.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from service.contract.generation import GenerationSpec, Receipt, ResultImage, Timings


class Status(StrEnum):
    """Where a job stands; the same words in code, API, metrics and logs."""

    #: Accepted and waiting for a worker.
    QUEUED = "queued"
    #: Held by one execution on one worker, under a lease.
    RUNNING = "running"
    #: Every picture is in storage.
    SUCCEEDED = "succeeded"
    #: Ended without a picture; `error` says why.
    FAILED = "failed"
    #: Ended because the caller asked for it.
    CANCELED = "canceled"
    #: Ended because its deadline passed.
    EXPIRED = "expired"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED})

#: Every change of status that exists. `running → queued` is a take-back or a hand-back.
TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.FAILED, Status.CANCELED, Status.EXPIRED}),
    Status.RUNNING: frozenset({Status.QUEUED, *TERMINAL}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
    Status.EXPIRED: frozenset(),
}


class IllegalTransition(ValueError):
    """A job was asked to change its status in a way that does not exist."""


def transition(current: Status, target: Status) -> Status:
    """Return `target`, or raise `IllegalTransition` where the table has no such arrow."""
    if target not in TRANSITIONS[current]:
        msg = f"{current} → {target}"
        raise IllegalTransition(msg)
    return target


Priority = Literal["high", "normal", "low"]

#: Claim order; a waiting lower class still gets every n-th turn (see docs/job-lifecycle.md).
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


class JobError(BaseModel):
    """Why a job ended without a picture."""

    model_config = ConfigDict(frozen=True)

    #: A `FailureCode`.
    code: str
    #: One sentence for the caller; never a traceback, a path or the prompt.
    message: str
    #: Whether the same request may succeed when it is sent again.
    retryable: bool


class Job(BaseModel):
    """One generation as stored in Redis. Times are milliseconds since 1970 by Redis' clock."""

    # An error would quote the prompt into a traceback.
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    schema_version: Literal[1] = 1
    id: str
    tenant: str
    #: The RQ queue and the set of workers that serve it.
    pool: str
    priority: Priority = "normal"
    status: Status = Status.QUEUED
    #: Grows by one with every change that a caller can see.
    revision: int = 0
    #: Started executions so far; a hand-back at a drain gives its attempt back.
    attempt: int = 0
    #: Executions whose lease ran out.
    losses: int = 0
    #: Engine deaths while this job ran alone as a suspect.
    strikes: int = 0
    #: Its engine died: it runs alone until it ends.
    suspect: bool = False
    #: Arrival order in the pool, kept over a take-back so that the job returns to the front.
    sequence: int = 0
    #: Jobs of its tenant and class that waited when it was accepted.
    ahead: int = 0
    #: Denoiser rows × steps that this request asks for, what fairness between tenants is measured in.
    cost: FiniteFloat = 1.0
    model: str
    spec: GenerationSpec
    #: Where its objects lie in the bucket: `{tenant}/{yyyy}/{mm}/{id}/`.
    object_prefix: str
    created_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    #: Not started by then: it ends expired.
    start_by_ms: int | None = None
    #: Not ended by then: it ends expired.
    finish_by_ms: int | None = None
    #: How long after its end the record and the pictures are kept.
    retain_ms: int
    #: When they will be erased; set when the job ends.
    expires_ms: int | None = None
    execution_id: str | None = None
    agent_id: str | None = None
    lease_ms: int | None = None
    cancel_requested: bool = False
    erase_requested: bool = False
    progress_step: int = 0
    progress_steps: int = 0
    phase: str | None = None
    #: The execution that holds it has shown a preview.
    previewed: bool = False
    images: tuple[ResultImage, ...] = ()
    timings: Timings | None = None
    receipt: Receipt | None = None
    error: JobError | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    #: The generation whose specification it repeats.
    rerun_of: str | None = None
    #: The request that created it, for logs.
    request_id: str | None = None
    #: The span of that request (W3C Trace Context), which those of its executions are children of; absent = not traced.
    traceparent: str | None = None
    #: Where its events go; absent = nowhere.
    webhook_url: str | None = None
    #: Which of them: `service.contract.events.WebhookEvent`, or what later versions know.
    webhook_events: tuple[str, ...] = ("completed",)

    @property
    def ended(self) -> bool:
        """Whether the status is terminal."""
        return self.status in TERMINAL
