"""What the workers of a pool will do: who starts when and ends when, by running it ahead. Pure.

Every worker has so many places. Whoever has one makes step after step; when somebody ends, the next one takes its
place, and all others go on at another pace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from service.contract.job import Priority
from service.generations.outlook.order import ClaimOrder, Taken
from service.generations.outlook.pace import CallPaces, DrawnWork


@dataclass(slots=True)
class Place:
    """A request that is being drawn."""

    job_id: str
    tenant: str
    work: DrawnWork
    #: Calls that are left of it.
    left: float


@dataclass(slots=True)
class Bench:
    """A worker: its places, and the models that it draws."""

    capacity: int
    models: frozenset[str]
    places: list[Place] = field(default_factory=list)
    #: s; when its places were as they are.
    at_s: float = 0.0
    _steps_s: list[float] | None = None
    _end_s: float | None = None

    def company(self) -> list[DrawnWork]:
        """Return what is drawn together."""
        return [each.work for each in self.places]

    def seat(self, place: Place, now_s: float, paces: CallPaces) -> None:
        """Begin one more."""
        self.advance(now_s, paces)
        self.places.append(place)
        self._changed()

    def next_end_s(self, paces: CallPaces) -> float | None:
        """Return when the first of them ends; None where nothing is drawn."""
        if self._end_s is None and self.places:
            self._end_s = self.at_s + min(p.left * s for p, s in zip(self.places, self._pace(paces), strict=True))
        return self._end_s

    def advance(self, now_s: float, paces: CallPaces) -> None:
        """Draw until then."""
        for place, step_s in zip(self.places, self._pace(paces), strict=True):
            place.left = max(0.0, place.left - (now_s - self.at_s) / step_s) if step_s > 0 else 0.0
        self.at_s = now_s

    def leave(self) -> list[Place]:
        """Remove and return those that have ended."""
        over = [each for each in self.places if each.left <= 1e-6]
        self.places = [each for each in self.places if each.left > 1e-6]
        self._changed()
        return over

    def _changed(self) -> None:
        self._steps_s = self._end_s = None

    def _pace(self, paces: CallPaces) -> list[float]:
        if self._steps_s is None:
            self._steps_s = paces.steps_s(self.company())
        return self._steps_s


@dataclass(slots=True)
class Ahead:
    """A job that will start."""

    job_id: str
    tenant: str
    priority: Priority
    start_s: float
    #: None where it was not followed to its end.
    finish_s: float | None = None


@dataclass(slots=True)
class Course:
    """What will happen."""

    #: In the order of their starts.
    starts: list[Ahead] = field(default_factory=list)
    #: s to the end of what runs already, by job.
    running: dict[str, float] = field(default_factory=dict)
    #: s until one more would start, behind all of `starts`; None where nothing can draw.
    next_s: float | None = None
    #: What is drawn together when the last one has started, on the fullest worker.
    company: list[DrawnWork] = field(default_factory=list)


def run_ahead(benches: Iterable[Bench], order: ClaimOrder[DrawnWork], paces: CallPaces, *, starts: int) -> Course:
    """Return what the workers do until that many jobs have started and ended.

    `benches` and `order` are used up. A place that is free is taken at once.
    """
    workers = list(benches)
    course = Course()
    followed: dict[int, Ahead] = {}
    before = {id(place) for each in workers for place in each.places}
    # Those behind the last one keep it company.
    enough = starts + sum(each.capacity for each in workers)
    now_s = 0.0
    while workers:
        for place, ahead in _fill(workers, order, paces, now_s, course, enough):
            if len(course.starts) <= starts:
                followed[id(place)] = ahead
        ends = [(end_s, at) for at, each in enumerate(workers) if (end_s := each.next_end_s(paces)) is not None]
        if not ends or (not before and not followed and (len(course.starts) >= starts or course.next_s is not None)):
            break
        now_s, at = min(ends)
        workers[at].advance(now_s, paces)
        for place in workers[at].leave():
            order.ended(place.tenant)
            if id(place) in before:
                before.discard(id(place))
                course.running[place.job_id] = now_s
            elif id(place) in followed:
                followed.pop(id(place)).finish_s = now_s
    del course.starts[starts:]
    return course


def _fill(
    workers: list[Bench], order: ClaimOrder[DrawnWork], paces: CallPaces, now_s: float, course: Course, enough: int
) -> Iterator[tuple[Place, Ahead]]:
    """Seat whoever waits while there is room; those with most room first, as bells find them."""
    for worker in sorted(workers, key=lambda each: len(each.places) / each.capacity):
        while len(worker.places) < worker.capacity:
            taken: Taken[DrawnWork] | None = None
            if len(course.starts) < enough:
                taken = order.take(worker.models.__contains__)
            if taken is None:
                if course.next_s is None:
                    course.next_s = now_s
                break
            work = taken.job.work
            place = Place(taken.job.job_id, taken.tenant, work, float(work.calls))
            worker.seat(place, now_s, paces)
            ahead = Ahead(taken.job.job_id, taken.tenant, taken.priority, now_s)
            course.starts.append(ahead)
            if len(worker.places) >= len(course.company):
                course.company = worker.company()
            yield place, ahead
