"""What lies ahead of one job, by the forecast that this process read last. Costs no call of Redis."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from service.contract.forecast import LONGEST_S, ClassAhead, Forecast, PoolAhead, TenantAhead
from service.contract.generation import GenerationSpec
from service.contract.job import Job, Status
from service.contract.steps import denoiser_calls, steps_run
from service.generations.outlook.overtaking import stretched
from service.jobs.forecasts import GOOD_MS


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of a job that waits or runs; None = not known. Seconds from now."""

    #: From 1; None also of one that runs.
    position: int | None = None
    start_s: float | None = None
    finish_s: float | None = None


_UNKNOWN = Outlook()


class Outlooks:
    """The forecast as it was read last, until it is too old."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._forecast: Forecast | None = None
        #: s by the clock; when it was made.
        self._made_s = 0.0

    @property
    def forecast(self) -> Forecast | None:
        """The forecast; None where there is none, or it is too old."""
        if self._forecast is not None and self._clock() - self._made_s > GOOD_MS / 1000:
            self._forecast = None
        return self._forecast

    def show(self, forecast: Forecast | None, *, now_ms: int = 0) -> None:
        """Take a forecast that was read at this moment by the clock of Redis."""
        self._forecast = forecast
        if forecast is not None:
            self._made_s = self._clock() - max(0.0, (now_ms - forecast.made_ms) / 1000)

    def of(self, job: Job) -> Outlook | None:
        """Return what is expected of a job; None of one that has ended."""
        if job.ended:
            return None
        forecast = self.forecast
        pool = forecast.pools.get(job.pool) if forecast else None
        if pool is None:
            return _UNKNOWN
        waits = job.status is not Status.RUNNING
        found = _overtaken(_of_waiting(job, pool), job, pool) if waits else _of_running(job, pool)
        return _aged(found, self._clock() - self._made_s)


def _of_running(job: Job, pool: PoolAhead) -> Outlook:
    if job.id in pool.running:
        return Outlook(finish_s=pool.running[job.id])
    if job.id in pool.next:
        return Outlook(finish_s=pool.next[job.id][2])
    step_s = _step_s(job.spec, pool, waits=True)
    if step_s is None:
        return Outlook()
    left = 1 - job.progress_step / job.progress_steps if job.progress_steps else 1.0
    return Outlook(finish_s=max(0.0, left) * calls_of(job.spec) * step_s + pool.after_s)


def _of_waiting(job: Job, pool: PoolAhead) -> Outlook:
    if job.id in pool.next:
        position, start_s, finish_s = pool.next[job.id]
        return Outlook(position, start_s, finish_s)
    each = pool.classes.get(job.priority)
    return _behind(job, pool, each) if each else Outlook()


def _overtaken(outlook: Outlook, job: Job, pool: PoolAhead) -> Outlook:
    """Return the outlook of a waiting job with those in it that are still to come and go before."""
    start_s = outlook.start_s
    if start_s is None:
        return outlook
    late_s = stretched(start_s, pool.overtaking.get(job.priority))
    finish_s = None if outlook.finish_s is None else outlook.finish_s + late_s - start_s
    return Outlook(outlook.position, late_s, finish_s)


def _behind(job: Job, pool: PoolAhead, each: ClassAhead) -> Outlook:
    """Return the outlook of a job that is further back, or has come since the forecast was made."""
    line = each.tenants.get(job.tenant)
    is_new = job.sequence == 0 or job.sequence > pool.sequence
    rank = float(job.ahead) if is_new or line is None else _rank(line.marks, job.sequence)
    # Those of its tenant that have come since, before it.
    unseen = max(0.0, rank - (line.waiting if line else 0)) if is_new else 0.0
    virtual = _virtual(line, each, rank, job.cost)
    before = max(_at(each.before, virtual), rank - unseen) + unseen
    others = before + _others_before(job, pool, before, unseen)
    waits = others > 0 or not pool.starts or pool.starts[0][1] > 0
    step_s = _step_s(job.spec, pool, waits=waits)
    if step_s is None or not pool.starts:
        return Outlook(position=int(before) + 1)
    lasts_s = calls_of(job.spec) * step_s + pool.after_s
    start_s = _start_s(pool, others)
    if line is not None and line.cap:
        # As many of its tenant's end before it as would run together with it beyond the cap.
        start_s = max(start_s, (rank + line.running - line.cap + 1) / line.cap * lasts_s)
    return Outlook(int(before) + 1, start_s, start_s + lasts_s)


def _others_before(job: Job, pool: PoolAhead, before: float, unseen: float) -> float:
    """Return how many of other tenants start before a job that have come since the forecast was made.

    Nothing is known of them but their number: they spread over the whole line; where there was none they were first.
    """
    came = max(0.0, job.sequence - pool.sequence - 1 - unseen)
    return came * min(1.0, before / len(pool.next)) if pool.next else came


def calls_of(spec: GenerationSpec) -> int:
    """Return the steps that a request takes, each of all its images; some families take one more or less."""
    return max(1, denoiser_calls(spec.scheduler, run=steps_run("sd1", steps=spec.steps, strength=spec.strength)))


def _rank(marks: Sequence[tuple[int, int, float]], sequence: int) -> float:
    """Return the place of a job in its line; 0 of one that was given back, and is older than the first."""
    at = bisect_right(marks, sequence, key=itemgetter(1))
    if at == 0:
        return 0.0
    rank, known = marks[at - 1][:2]
    if at == len(marks):
        return float(rank)
    next_rank, next_known = marks[at][:2]
    return min(rank + (sequence - known) * (next_rank - rank) / (next_known - known), next_rank - 1.0)


def _virtual(line: TenantAhead | None, each: ClassAhead, rank: float, cost: float) -> float:
    """Return the virtual start of the job of this rank."""
    if line is None or not line.marks:
        return each.present + rank * cost
    if rank >= line.waiting:
        return line.end + (rank - line.waiting) * cost / line.weight
    return _between([(mark[0], mark[2]) for mark in line.marks], rank)


def _at(curve: Sequence[tuple[float, float]], virtual: float) -> float:
    return _between(curve, virtual) if curve else 0.0


def _between(curve: Sequence[tuple[float, float]], at: float) -> float:
    """Return the height of a curve of straight pieces; level before the first and behind the last point."""
    behind = bisect_right(curve, at, key=itemgetter(0))
    if behind == 0:
        return curve[0][1]
    x, y = curve[behind - 1]
    if behind == len(curve):
        return y
    next_x, next_y = curve[behind]
    return y + (at - x) * (next_y - y) / (next_x - x)


def _start_s(pool: PoolAhead, before: float) -> float:
    last, last_s = pool.starts[-1]
    if before >= last:
        return last_s + (before - last) * pool.each_s
    at = bisect_left(pool.starts, int(before), key=itemgetter(0))
    return pool.starts[at][1]


def _step_s(spec: GenerationSpec, pool: PoolAhead, *, waits: bool) -> float | None:
    """Return the s of one step of a request; None where nothing is known of its model, or nobody draws it."""
    pace = pool.models.get(spec.model)
    if pace is None:
        return None
    rows = spec.num_images * (2 if spec.guidance_scale > 1 else 1)
    more_px = rows * spec.width * spec.height - pace.px
    return max(0.0, (pace.full_s if waits else pace.joining_s) + more_px * pace.px_s)


def _aged(outlook: Outlook, age_s: float) -> Outlook:
    return Outlook(outlook.position, _left(outlook.start_s, age_s), _left(outlook.finish_s, age_s))


def _left(seconds: float | None, age_s: float) -> float | None:
    return None if seconds is None else min(float(LONGEST_S), max(0.0, round(seconds - age_s, 1)))
