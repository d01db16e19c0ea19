"""What the scripts take and what their replies mean. Pure; both clients, sync and async, are thin over it."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import ValidationError

from service.contract.catalog import ModelCard
from service.contract.generation import Receipt, ResultImage, Timings
from service.contract.job import Job, JobError, Status
from service.contract.rate import RequestRate
from service.contract.worker import WorkerRecord
from service.jobs import documents
from service.jobs.queue import bell_fields, bell_id
from service.jobs.soundness import Finding, judge_redis

Argument = str | bytes | int | float

SubmitOutcome = Literal[
    "created",
    "replayed",
    "mismatch",
    "gone",
    "rate_limited",
    "quota_exceeded",
    "tenant_full",
    "pool_full",
    "endpoints_full",
]
CommitOutcome = Literal["committed", "already_committed", "fenced"]
ReleaseReason = Literal["drained", "engine_lost"]
RenewAnswer = Literal["ok", "cancel", "fenced"]
#: Whose jobs wait in line: both have a limit of their own.
Queued = Literal["pool", "tenant"]


@dataclass(frozen=True, slots=True)
class Idempotency:
    """An Idempotency-Key, ready to be compared."""

    #: SHA-256 over method, path and key; the scripts add the tenant.
    record: str
    #: SHA-256 over the parsed body.
    body_sha256: str
    #: s; how long the key is remembered.
    ttl_s: int


@dataclass(frozen=True, slots=True)
class SubmitLimits:
    """How many jobs may wait."""

    #: For a tenant whose record sets none; None = no cap.
    tenant_queued: int | None
    pool_queued: int


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a submit."""

    outcome: SubmitOutcome
    #: The jobs created, replayed, gone or of the other body, in the order in which they were asked for.
    job_ids: tuple[str, ...] = ()
    #: When they were created, by Redis' clock; None where nothing was.
    created_ms: int | None = None
    #: What is left of the tenant's rate; None where it has none.
    rate: RequestRate | None = None
    #: The pool that is full, where one is.
    pool: str = ""
    #: s until a used-up quota is a new one; None where none is used up.
    retry_after_s: int | None = None
    #: Of each job that this call created, those of its tenant and class that waited before it.
    aheads: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """One claim of an agent, as it is renewed."""

    job_id: str
    execution_id: str
    step: int = 0
    steps: int = 0
    phase: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution ended."""

    status: Status
    images: tuple[ResultImage, ...] = ()
    timings: Timings | None = None
    receipt: Receipt | None = None
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How many jobs ended lately."""

    #: By the clock of Redis.
    now_ms: int
    #: The present slot of time first; each is `LIMITS["ended_slot_ms"]` long.
    by_slot: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What a tenant used on one day."""

    #: Generations that were accepted.
    requests: int
    #: Pictures of generations that were drawn to their end, and the device's time for these generations.
    images: int
    gpu_ms: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one reaper pass did."""

    leases: int
    deadlines: int
    bells: int


@dataclass(frozen=True, slots=True)
class ServerState:
    """What Redis says of itself."""

    uptime_s: float
    #: Used memory ÷ maxmemory; None where no limit is set.
    memory_ratio: float | None
    #: What an operator should know of it; empty where all is well.
    concerns: tuple[Finding, ...] = ()


def server_state(info: Mapping[str, Any]) -> ServerState:
    """Read the reply of INFO."""
    limit = int(info.get("maxmemory", 0))
    return ServerState(
        uptime_s=float(info["uptime_in_seconds"]),
        memory_ratio=int(info["used_memory"]) / limit if limit else None,
        concerns=tuple(finding for finding in judge_redis(info) if finding.verdict != "ok"),
    )


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model that some worker has shown, and what it is on those that live."""

    card: ModelCard
    #: Workers that hold it in memory.
    warm: int
    #: Workers that are reading it.
    loading: int = 0
    #: Workers that read it when it is wanted.
    cold: int = 0


def bell_arguments(description: str = "again") -> list[Argument]:
    """Return the bell that a script may ring, as often as it has to: each time with another id, in any pool."""
    fields = bell_fields(description)
    return [bell_id(f"{secrets.token_hex(8)}-"), len(fields), *fields]


def claim_arguments(models: Collection[str], warm: Collection[str]) -> list[Argument]:
    """Return the bell and the models of `claim`'s ARGV."""
    return [*bell_arguments(), len(models), *models, *warm]


def submit_arguments(
    jobs: Sequence[Job], *, idempotency: Idempotency | None, limits: SubmitLimits, staged: Collection[str]
) -> list[Argument]:
    """Return ARGV of `submit`, without the clock. The jobs, one at least, are of one tenant."""
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    arguments: list[Argument] = [
        idempotency.record if idempotency else "",
        idempotency.body_sha256 if idempotency else "",
        idempotency.ttl_s if idempotency else 0,
        "" if limits.tenant_queued is None else limits.tenant_queued,
        limits.pool_queued,
        *bell_arguments(jobs[0].id + more),
        len(staged),
        *staged,
    ]
    for job in jobs:
        document = [item for pair in documents.encode(job).items() for item in pair]
        arguments += [len(document), *document]
    return arguments


def submission(reply: Sequence[str]) -> Submission:
    """Read the reply of `submit`."""
    created_ms = int(reply[2]) if reply[2] else None
    outcome, of, rate = cast("SubmitOutcome", reply[0]), reply[1], told_rate(reply[4:])
    if outcome == "pool_full":
        return Submission(outcome, rate=rate, pool=of)
    if outcome == "quota_exceeded":
        return Submission(outcome, rate=rate, retry_after_s=int(of))
    return Submission(outcome, tuple(of.split()), created_ms, rate, aheads=tuple(map(int, reply[3].split())))


def told_rate(part: Sequence[str | int]) -> RequestRate | None:
    """Read what a reply tells of a tenant's rate; None where it tells nothing."""
    return RequestRate(*map(int, part)) if part else None


def claimed_job(reply: Sequence[str]) -> Job | None:
    """Read the reply of `claim`; None = nothing fits now."""
    if reply[0] != "claimed":
        return None
    return documents.decode(dict(zip(reply[1::2], reply[2::2], strict=True)))


def renew_arguments(holdings: Iterable[Holding]) -> list[Argument]:
    """Return the claims part of `renew`'s ARGV."""
    return [part for h in holdings for part in (h.job_id, h.execution_id, h.step, h.steps, h.phase)]


def commit_arguments(job_id: str, execution_id: str, outcome: Outcome) -> list[Argument]:
    """Return ARGV of `commit`, without the clock."""
    gpu_ms = round(1000 * outcome.timings.gpu_s) if outcome.timings else 0
    fields: dict[str, object] = {
        "images": outcome.images,
        "timings": outcome.timings,
        "receipt": outcome.receipt,
        "error": outcome.error,
    }
    return [
        job_id,
        execution_id,
        outcome.status,
        len(outcome.images),
        gpu_ms,
        *bell_arguments(),
        *[item for name, value in fields.items() for item in (name, documents.encode_field(name, value))],
    ]


def reap_arguments(*, take_back: bool, limit: int) -> list[Argument]:
    """Return ARGV of `reap`, without the clock."""
    return ["1" if take_back else "0", limit, *bell_arguments()]


def registered_models(cards: Mapping[str, str], agents: Iterable[str | None]) -> list[RegisteredModel]:
    """Join model cards with the live agents' records; entries that do not read as ours are left out."""
    warm: Counter[str] = Counter()
    loading: Counter[str] = Counter()
    cold: Counter[str] = Counter()
    for text in filter(None, agents):
        with suppress(ValidationError):
            record = WorkerRecord.model_validate_json(text)
            warm.update(record.warm)
            loading.update(record.loading)
            cold.update(record.cold)
    models: list[RegisteredModel] = []
    for text in cards.values():
        with suppress(ValidationError):
            # A worker of a later version may have more to say: its models stay in sight while gateways are upgraded.
            card = ModelCard.model_validate_json(text, extra="ignore")
            models.append(RegisteredModel(card, warm[card.id], loading[card.id], cold[card.id]))
    return sorted(models, key=lambda model: (not model.card.default, model.card.id))


def record_name(method: str, path: str, idempotency_key: str) -> str:
    """Return the name under which an Idempotency-Key is remembered."""
    return hashlib.sha256(f"{method}\n{path}\n{idempotency_key}".encode()).hexdigest()
