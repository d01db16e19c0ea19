"""How fast workers really are, against what the costs of calls say: told apart from one look to the next. Pure.

Costs leave out what lies between calls, and what else the machine does. So what was done between two looks is compared
with what it should have been, wherever both looks found the workers as busy as they can be, or with the same jobs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from service.contract.job import Priority
from service.generations.outlook.making import Knowledge, benches, work_of, work_rate
from service.generations.outlook.pace import CallPaces
from service.jobs.survey import PoolSurvey, Survey

#: s after which what was seen counts half.
_HALF_LIFE_S = 10.0
#: s of work that count as seen at first, at the speed that costs say, or that another process has told.
_TRUST_S = 0.5
#: s between two looks beyond which one knows nothing of what lay between.
_LONGEST_S = 5.0
#: Waiting jobs among which one is looked for that can be drawn.
_LOOKED_AT = 64
_SLOWEST, _FASTEST = 0.001, 1000.0


@dataclass(frozen=True, slots=True)
class WorkLeft:
    """What is left of one job."""

    #: s of a device that has it for itself.
    left_s: float
    #: Where it waits; None = it runs.
    waits: tuple[Priority, str, int] | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """One pool at one moment."""

    at_ms: int
    works: Mapping[str, WorkLeft]
    #: First sequence of each line that waits.
    firsts: Mapping[tuple[Priority, str], int]
    #: s of work that are done in a second, by costs.
    rate: float
    #: Something waits for a place.
    saturated: bool
    #: What seconds of work were reckoned by; and of which models that drawn here something was measured.
    paces: CallPaces
    measured: frozenset[str]

    @property
    def running(self) -> frozenset[str]:
        """The jobs that run."""
        return frozenset(job_id for job_id, work in self.works.items() if work.waits is None)

    def left_s(self, job_id: str, was: WorkLeft) -> float:
        """Return what is left of a job that was seen earlier; nothing of one that neither waits nor runs."""
        if job_id in self.works:
            return self.works[job_id].left_s
        if was.waits is not None:
            priority, tenant, sequence = was.waits
            first = self.firsts.get((priority, tenant))
            if first is not None and sequence >= first:
                return was.left_s
        return 0.0


def look_at(seen: Survey, pool: PoolSurvey, known: Knowledge) -> Look:
    """Return one pool as a survey found it."""
    paces = known.paces[pool.name]
    workers = benches(seen, pool.name, known)
    drawn = {model for worker in workers for model in worker.models}
    works: dict[str, WorkLeft] = {}
    firsts: dict[tuple[Priority, str], int] = {}
    for priority, each in pool.classes.items():
        for line in each.lines:
            if line.marks:
                firsts[priority, line.tenant] = line.marks[0].sequence
            for at, mark in enumerate(line.marks):
                if mark.rank == at:
                    waits = priority, line.tenant, mark.sequence
                    works[mark.job_id] = WorkLeft(paces.alone_s(work_of(mark.job_id, known, paces)), waits)
    waiting = [work for job_id in list(works)[:_LOOKED_AT] if (work := work_of(job_id, known, paces)).model in drawn]
    filling = iter(waiting)
    for worker in workers:
        for place in worker.places:
            whole_s = paces.alone_s(place.work)
            works[place.job_id] = WorkLeft(whole_s * place.left / place.work.calls)
    rate = 0.0
    for worker in workers:
        # A place that is free while somebody waits is about to be taken: what passes until then is lost, not unused.
        company = worker.company()
        company += itertools.islice(filling, max(0, worker.capacity - len(company)))
        rate += work_rate(company, paces)
    measured = frozenset(model for model in drawn if paces.knows(model))
    return Look(seen.now_ms, works, firsts, rate, saturated=bool(waiting), paces=paces, measured=measured)


class SpeedMeter:
    """What was done in a second ÷ what the costs of calls say; 1 where they are right."""

    def __init__(self, speed: float | None = None) -> None:
        """`speed`: what another process has measured before."""
        self._last: Look | None = None
        self._begin(speed)

    def observe(self, look: Look) -> None:
        """Take one look, and learn from what became of what was seen at the last one."""
        last, self._last = self._last, look
        if last is None:
            return
        if last.measured != look.measured:
            self._begin(None)
        if last.paces is not look.paces:
            # What was left then was reckoned in other seconds.
            return
        seconds = (look.at_ms - last.at_ms) / 1000
        comparable = (last.saturated and look.saturated) or (last.running and last.running == look.running)
        rate = (last.rate + look.rate) / 2
        if not comparable or not 0 < seconds <= _LONGEST_S or rate <= 0:
            return
        done_s = sum(max(0.0, was.left_s - look.left_s(job_id, was)) for job_id, was in last.works.items())
        keep = 0.5 ** (seconds / _HALF_LIFE_S)
        self._done_s = keep * self._done_s + done_s
        self._expected_s = keep * self._expected_s + rate * seconds
        self._has_seen = self._has_seen or done_s > 0

    def _begin(self, speed: float | None) -> None:
        self._done_s = _TRUST_S * (speed or 1.0)
        self._expected_s = _TRUST_S
        self._has_seen = speed is not None

    def speed(self, *, measured: bool) -> float | None:
        """Return it; where costs were not `measured`, None until something was seen."""
        if not measured and not self._has_seen:
            return None
        return min(_FASTEST, max(_SLOWEST, self._done_s / self._expected_s))
