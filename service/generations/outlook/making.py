"""From what waits and runs to what lies ahead of it. Pure; of bounded size, however long the queues are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from service.contract.catalog import ModelCard
from service.contract.forecast import (
    LONGEST_S,
    ClassAhead,
    Forecast,
    ModelPace,
    NextJob,
    PoolAhead,
    Seconds,
)
from service.contract.job import PRIORITIES, Priority
from service.generations.outlook.fleet import Bench, Course, Place, run_ahead
from service.generations.outlook.lines import before_curve, stretches, tenant_ahead, virtual_line
from service.generations.outlook.order import ClaimOrder, Queued, QueuedClass, QueuedLine
from service.generations.outlook.pace import CallPaces, DrawnWork
from service.generations.outlook.turns import turns
from service.jobs.survey import Brief, ClassSurvey, Line, PoolSurvey, Survey

#: Jobs that are followed one by one; those behind them wait by the pace of the rest.
FOLLOWED = 256

_UNREAD = Brief(None)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known besides the survey."""

    #: By job; of those that were read.
    briefs: Mapping[str, Brief]
    cards: Mapping[str, ModelCard]
    #: By pool: what its workers cost. And what they did in a second of what costs say.
    paces: Mapping[str, CallPaces]
    speeds: Mapping[str, float | None]
    #: s between the last decoded picture and the end: compressed and stored.
    after_s: float


def look_ahead(seen: Survey, known: Knowledge) -> Forecast:
    """Return what lies ahead of everything that was counted."""
    return Forecast(made_ms=seen.now_ms, pools={pool.name: _pool(seen, pool, known) for pool in pools_of(seen)})


def pools_of(seen: Survey) -> list[PoolSurvey]:
    """Return every pool: those that had a job, and those that have a worker."""
    found = {pool.name: pool for pool in seen.pools}
    for worker in seen.workers:
        if worker.pool not in found:
            nothing: dict[Priority, ClassSurvey] = {priority: ClassSurvey() for priority in PRIORITIES}
            found[worker.pool] = PoolSurvey(worker.pool, 0, 0, nothing)
    return list(found.values())


def benches(seen: Survey, pool: str, known: Knowledge) -> list[Bench]:
    """Return the workers of a pool, and what they draw."""
    paces = known.paces[pool]
    found = {
        worker.agent_id: Bench(worker.capacity, frozenset((*worker.warm, *worker.loading, *worker.cold)))
        for worker in seen.workers
        if worker.pool == pool and worker.capacity > 0
    }
    for job in seen.running:
        if job.pool == pool and job.agent_id in found:
            work = work_of(job.job_id, known, paces)
            place = Place(job.job_id, job.tenant, work, work.calls * (1 - job.fraction))
            found[job.agent_id].places.append(place)
    return list(found.values())


def work_of(job_id: str, known: Knowledge, paces: CallPaces) -> DrawnWork:
    """Return what a job takes; of one that could not be read, what is usual."""
    seen = known.briefs.get(job_id, _UNREAD)
    if seen.spec is not None:
        if job_id not in paces.works:
            if len(paces.works) > len(known.briefs) + FOLLOWED:
                paces.works.clear()
            paces.works[job_id] = paces.work(seen.spec, seen.cost)
        return paces.works[job_id]
    usual = next(iter(known.cards.values()), None)
    return paces.usual(usual) if usual else DrawnWork("", 1, 1, 1, 0.0)


def _pool(seen: Survey, pool: PoolSurvey, known: Knowledge) -> PoolAhead:
    paces = known.paces[pool.name]
    running = Counter(job.tenant for job in seen.running)
    order = ClaimOrder({p: _queued(each, known, paces) for p, each in pool.classes.items()}, running)
    workers = benches(seen, pool.name, known)
    course = run_ahead(workers, order, paces, starts=FOLLOWED)
    speed = known.speeds.get(pool.name)
    drawn = {model for worker in workers for model in worker.models}
    scale = _Scale(speed, known.after_s, measured=frozenset(m for m in drawn if speed is not None or paces.knows(m)))
    newcomers_s = _newcomers_s(benches(seen, pool.name, known), course, known, paces)
    each_s = _each_s(pool, course, len(workers), known, paces)
    places = sum(worker.capacity for worker in workers)
    if not each_s and len(newcomers_s) > places:
        # Once round, every place is taken by another.
        each_s = (newcomers_s[-1] - newcomers_s[-1 - places]) / places
    return PoolAhead(
        sequence=pool.sequence,
        next=_next(course, known, scale) if workers else _next_place(order),
        running={
            job_id: scale.end(end_s) or 0.0
            for job_id, end_s in course.running.items()
            if _model(job_id, known) in scale.measured
        },
        starts=_starts(course, newcomers_s, scale) if scale.measured else [],
        each_s=scale.seconds(each_s),
        models=_models(seen, pool.name, known, course, scale),
        devices=sorted({w.device_name for w in seen.workers if w.pool == pool.name and w.device_name}),
        after_s=round(known.after_s, 3),
        speed=speed,
        classes=_classes(pool, known),
    )


def _next(course: Course, known: Knowledge, scale: _Scale) -> dict[str, NextJob]:
    found: dict[str, NextJob] = {}
    for place, job in enumerate(course.starts, 1):
        if job.job_id and _model(job.job_id, known) in scale.measured:
            found[job.job_id] = place, scale.seconds(job.start_s), scale.end(job.finish_s)
        elif job.job_id:
            found[job.job_id] = place, None, None
    return found


def _next_place(order: ClaimOrder[DrawnWork]) -> dict[str, NextJob]:
    """Return who would be next if there were a worker."""
    taken = [order.take() for _ in range(FOLLOWED)]
    return {each.job.job_id: (place, None, None) for place, each in enumerate(taken, 1) if each and each.job.job_id}


@dataclass(frozen=True, slots=True)
class _Scale:
    """From seconds by the costs of calls to seconds as they pass."""

    speed: float | None
    after_s: float
    #: Models of which seconds can be told.
    measured: frozenset[str]

    def seconds(self, by_costs_s: float) -> Seconds:
        return min(LONGEST_S, max(0.0, round(by_costs_s / (self.speed or 1.0), 3)))

    def end(self, by_costs_s: float | None) -> Seconds | None:
        return None if by_costs_s is None else min(LONGEST_S, self.seconds(by_costs_s) + round(self.after_s, 3))


def _model(job_id: str, known: Knowledge) -> str:
    spec = known.briefs.get(job_id, _UNREAD).spec
    return spec.model if spec else ""


def _queued(each: ClassSurvey, known: Knowledge, paces: CallPaces) -> QueuedClass[DrawnWork]:
    lines = [
        QueuedLine(line.tenant, line.virtual, _jobs(line, known, paces), cap=line.cap, held=line.held)
        for line in each.lines
    ]
    return QueuedClass(lines, each.virtual, each.passed)


def _jobs(line: Line, known: Knowledge, paces: CallPaces) -> Iterator[Queued[DrawnWork]]:
    """Yield a line's jobs; in place of those that are not known by name, the next one that is, without its name."""
    rank = 0
    for mark in line.marks:
        seen = known.briefs.get(mark.job_id, _UNREAD)
        work = work_of(mark.job_id, known, paces)
        model = seen.spec.model if seen.spec else work.model
        price = 0.0 if seen.charged else seen.cost / line.weight
        while rank < mark.rank:
            yield Queued("", model, price, work)
            rank += 1
        yield Queued(mark.job_id, model, price, work)
        rank += 1


def _starts(course: Course, newcomers_s: Sequence[float], scale: _Scale) -> list[tuple[int, float]]:
    found = [(place, scale.seconds(job.start_s)) for place, job in enumerate(course.starts)]
    more_s = newcomers_s or ([course.next_s] if course.next_s is not None and len(found) < FOLLOWED else [])
    return [*found, *((place, scale.seconds(each_s)) for place, each_s in enumerate(more_s, len(found)))]


def _newcomers_s(workers: list[Bench], course: Course, known: Knowledge, paces: CallPaces) -> list[float]:
    """Return when usual jobs would start that came now, one behind the other; nothing where a line says it as well.

    Of those that come within a second to workers with free places the first ones start at once, and all others wait.
    """
    places = sum(each.capacity for each in workers)
    drawn = {model for each in workers for model in each.models}
    card = next((card for model, card in known.cards.items() if model in drawn), None)
    if card is None or course.next_s is None or len(course.starts) >= min(places, FOLLOWED // 2):
        return []
    usual = paces.usual(card)
    works = [work_of(each.job_id, known, paces) for each in course.starts]
    works += [usual] * min(2 * places, FOLLOWED // 2)
    line = QueuedLine("", 0.0, iter([Queued("", each.model, 1.0, each) for each in works]))
    ran = run_ahead(workers, ClaimOrder({"normal": QueuedClass([line])}), paces, starts=len(works))
    return [each.start_s for each in ran.starts[len(course.starts) :]]


def _each_s(pool: PoolSurvey, course: Course, workers: int, known: Knowledge, paces: CallPaces) -> float:
    """Return the s that each job adds beyond those that are followed: its work by what all workers draw at once."""
    drawn = workers * work_rate(course.company, paces)
    works = [
        (jobs, paces.alone_s(work_of(job_id, known, paces)))
        for each in pool.classes.values()
        for line in each.lines
        for job_id, jobs in stretches(line)
    ]
    total = sum(jobs for jobs, _ in works)
    return sum(jobs * work_s for jobs, work_s in works) / total / drawn if total and drawn else 0.0


def work_rate(company: Sequence[DrawnWork], paces: CallPaces) -> float:
    """Return the s of work that a worker does in one second by the costs of calls: the more, the more is shared."""
    steps_s = paces.steps_s(company)
    return sum(paces.alone_s(w) / w.calls / s for w, s in zip(company, steps_s, strict=True) if s > 0)


def _models(seen: Survey, pool: str, known: Knowledge, course: Course, scale: _Scale) -> dict[str, ModelPace]:
    paces = known.paces[pool]
    workers = benches(seen, pool, known)
    found: dict[str, ModelPace] = {}
    for model in sorted(scale.measured & known.cards.keys()):
        able = [each for each in workers if model in each.models]
        if not able:
            continue
        usual = paces.usual(known.cards[model])
        least = min(able, key=lambda each: len(each.places) / each.capacity).company()
        joining = [*least[: able[0].capacity - 1], usual]
        full = [*course.company[1:], usual] if course.company else joining
        wider = replace(usual, rows=2 * usual.rows)
        px = usual.rows * usual.area
        full_s, wider_s = paces.steps_s(full)[-1], paces.steps_s([*full[:-1], wider])[-1]
        found[model] = ModelPace(
            joining_s=scale.seconds(paces.steps_s(joining)[-1]),
            full_s=scale.seconds(full_s),
            px_s=max(0.0, wider_s - full_s) / px / (scale.speed or 1.0),
            px=px,
        )
    return found


def _classes(pool: PoolSurvey, known: Knowledge) -> dict[Priority, ClassAhead]:
    waiting: dict[Priority, int] = {p: sum(line.waiting for line in each.lines) for p, each in pool.classes.items()}
    passed: dict[Priority, int] = {p: each.passed for p, each in pool.classes.items()}
    found: dict[Priority, ClassAhead] = {}
    for at, priority in enumerate(PRIORITIES):
        each = pool.classes[priority]
        costs = {mark.job_id: _price(mark.job_id, known) for line in each.lines for mark in line.marks}
        lines = [virtual_line(line, costs) for line in each.lines]
        # One more of this class: where a job that comes now would stand.
        more: dict[Priority, int] = {**waiting, priority: waiting[priority] + 1}
        taken = turns(more, passed, exact=FOLLOWED)
        found[priority] = ClassAhead(
            present=each.virtual,
            tenants={line.tenant: tenant_ahead(line, ahead) for line, ahead in zip(each.lines, lines, strict=True)},
            before=before_curve(lines, [(done[at], sum(done)) for done in taken], exact=FOLLOWED),
        )
    return found


def _price(job_id: str, known: Knowledge) -> float:
    seen = known.briefs.get(job_id, _UNREAD)
    return 0.0 if seen.charged else seen.cost
