"""What waits and what runs, as the script `survey` counts it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from service.contract.generation import GenerationSpec, Timings
from service.contract.job import PRIORITIES, Priority
from service.contract.worker import WorkerRecord

#: Fields of a document that a forecast needs, in the order of `brief`; none of them changes while the job waits.
BRIEF_FIELDS = ("spec", "cost", "charged")

#: s; what a job takes longer behind its last picture is an outage of the storage, and says nothing of the next one.
LONGEST_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A waiting job, by its place in its tenant's line."""

    #: From 0.
    rank: int
    job_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Line:
    """The jobs of one tenant that wait in one class."""

    tenant: str
    #: Virtual start of its first job.
    virtual: float
    weight: float
    #: Jobs of this tenant that may run at once, None = any number; and those that do.
    cap: int | None
    running: int
    waiting: int
    #: It is at its cap: no claim may choose it.
    held: bool
    #: The first ones without a gap, then some further back, the last one among them.
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class ClassSurvey:
    """One class of priority in one pool."""

    virtual: float = 0.0
    #: How often it was passed over since it had a turn.
    passed: int = 0
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolSurvey:
    """One pool."""

    name: str
    sequence: int
    waiting: int
    classes: dict[Priority, ClassSurvey]


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that is held by an agent."""

    job_id: str
    pool: str
    tenant: str
    agent_id: str
    #: Part of its steps that are done.
    fraction: float


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything."""

    now_ms: int
    running: tuple[RunningJob, ...] = ()
    workers: tuple[WorkerRecord, ...] = ()
    pools: tuple[PoolSurvey, ...] = ()


@dataclass(frozen=True, slots=True)
class Brief:
    """What a job asks for, as far as a forecast needs it."""

    #: None where it does not read as one.
    spec: GenerationSpec | None = field(repr=False)
    cost: float = 1.0
    #: It was started once, and is not charged again.
    charged: bool = False


def read_survey(reply: Sequence[Any]) -> Survey:
    """Read the reply of `survey`."""
    now_ms, running, agents, pools = reply
    return Survey(
        int(now_ms),
        tuple(_running(*each) for each in running),
        tuple(filter(None, map(_worker, agents))),
        tuple(_pool(each) for each in pools),
    )


def brief(stored: Sequence[str | None]) -> Brief:
    """Read the `BRIEF_FIELDS` of a document; whatever stands there."""
    spec: GenerationSpec | None = None
    if stored[0]:
        try:
            spec = GenerationSpec.model_validate_json(stored[0])
        except ValidationError:
            spec = None
    return Brief(spec, max(0.0, finite(stored[1], 1.0)), stored[2] == "1")


def afterwards_s(stored: str) -> float | None:
    """Return what the `timings` of a document say of the time behind its last picture; None where they say nothing."""
    try:
        timings = Timings.model_validate_json(stored)
    except ValidationError:
        return None
    seconds = timings.compress_s + timings.upload_s
    return seconds if 0 <= seconds <= LONGEST_AFTER_S else None


def finite(text: str | None, otherwise: float) -> float:
    """Return the number that a text says; `otherwise` where it says none, or no finite one."""
    try:
        value = float(text) if text else otherwise
    except ValueError:
        return otherwise
    return value if math.isfinite(value) else otherwise


def _running(job_id: str, pool: str, tenant: str, agent_id: str, step: int, steps: int) -> RunningJob:
    return RunningJob(job_id, pool, tenant, agent_id, min(1.0, step / steps) if steps else 0.0)


def _worker(text: str) -> WorkerRecord | None:
    try:
        return WorkerRecord.model_validate_json(text)
    except ValidationError:
        return None


def _pool(reply: Sequence[Any]) -> PoolSurvey:
    name, sequence, waiting, *classes = reply
    found: dict[Priority, ClassSurvey] = {
        priority: _class(*each) for priority, each in zip(PRIORITIES, classes, strict=True)
    }
    return PoolSurvey(str(name), int(sequence), int(waiting), found)


def _class(virtual: str, passed: int, lines: Sequence[Sequence[Any]]) -> ClassSurvey:
    return ClassSurvey(finite(virtual, 0.0), int(passed), tuple(_line(each) for each in lines))


def _line(reply: Sequence[Any]) -> Line:
    tenant, virtual, weight, cap, running, waiting, held, points = reply
    # Ranks were read one after the other, of one state: they ascend, and so do sequences.
    marks = tuple(Mark(int(rank), str(job_id), int(finite(sequence, 0.0))) for rank, job_id, sequence in points)
    most = finite(cap, -1.0)
    return Line(
        tenant=str(tenant),
        virtual=finite(virtual, 0.0),
        weight=max(finite(weight, 1.0), 0.001),
        cap=int(most) if most >= 0 else None,
        running=int(running),
        waiting=int(waiting),
        held=bool(held),
        marks=marks,
    )
