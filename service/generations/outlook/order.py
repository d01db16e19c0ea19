"""The order in which waiting jobs will be claimed: what `claim.lua` does, done ahead. Pure.

Priority with ageing, then tenants by virtual time, then first come among the jobs that can be drawn. Left out are the
preference for models in memory, which moves a job by eight places at most, and suspects.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.contract.job import PRIORITIES, Priority
from service.jobs.scripts import LIMITS

W = TypeVar("W")

_TURNS_PASSED, _WINDOW = LIMITS["turns_passed"], LIMITS["window"]


@dataclass(frozen=True, slots=True)
class Queued(Generic[W]):
    """A job that waits."""

    #: Empty where it stands for some job of that place in the line.
    job_id: str
    model: str
    #: What its start adds to its tenant's virtual time.
    price: float
    #: What it is to whoever draws.
    work: W


@dataclass(slots=True)
class QueuedLine(Generic[W]):
    """The jobs of one tenant in one class, first come first."""

    tenant: str
    virtual: float
    jobs: Iterator[Queued[W]]
    cap: int | None = None
    held: bool = False
    #: Those that were looked at.
    _ahead: deque[Queued[W]] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return self._look(1)

    def pick(self, drawable: Callable[[str], bool]) -> Queued[W] | None:
        """Remove and return the first of the next jobs that can be drawn."""
        self._look(_WINDOW)
        for at, job in enumerate(self._ahead):
            if at == _WINDOW:
                break
            if drawable(job.model):
                del self._ahead[at]
                return job
        return None

    def _look(self, count: int) -> bool:
        while len(self._ahead) < count:
            job = next(self.jobs, None)
            if job is None:
                break
            self._ahead.append(job)
        return bool(self._ahead)


@dataclass(slots=True)
class QueuedClass(Generic[W]):
    """The lines of one class of priority."""

    lines: Iterable[QueuedLine[W]] = ()
    present: float = 0.0
    passed: int = 0


@dataclass(slots=True)
class _Class(Generic[W]):
    present: float
    passed: int
    #: By virtual time, then by name as Redis orders names. What follows is never compared: names differ.
    active: list[tuple[float, bytes, QueuedLine[W]]] = field(default_factory=list)

    def put(self, line: QueuedLine[W]) -> None:
        heapq.heappush(self.active, (line.virtual, line.tenant.encode(), line))


@dataclass(frozen=True, slots=True)
class Taken(Generic[W]):
    """A job that was taken."""

    job: Queued[W]
    tenant: str
    priority: Priority
    #: Its virtual start.
    virtual: float


class ClaimOrder(Generic[W]):
    """Takes one job after the other, as claims do."""

    def __init__(self, classes: Mapping[Priority, QueuedClass[W]], running: Mapping[str, int] | None = None) -> None:
        """`running`: jobs that run, by tenant; they count where a tenant has a cap."""
        self._running = Counter(dict(running or {}))
        self._held: dict[str, list[tuple[Priority, QueuedLine[W]]]] = {}
        self._classes: dict[Priority, _Class[W]] = {}
        for priority in PRIORITIES:
            given = classes.get(priority, QueuedClass())
            self._classes[priority] = found = _Class[W](given.present, given.passed)
            for line in given.lines:
                if not line:
                    continue
                if line.held:
                    self._held.setdefault(line.tenant, []).append((priority, line))
                else:
                    found.put(line)

    def take(self, drawable: Callable[[str], bool] = lambda _: True) -> Taken[W] | None:
        """Return the next job that can be drawn, which now runs; None where nothing can be taken."""
        barren: set[Priority] = set()
        while (priority := self._turn(barren)) is not None:
            taken = self._choose(priority, drawable)
            if taken is not None:
                return taken
            barren.add(priority)
        return None

    def ended(self, tenant: str) -> None:
        """Note that a job of this tenant ended: what its cap held back may be chosen again."""
        self._running[tenant] -= 1
        for priority, line in self._held.pop(tenant, ()):
            line.virtual = max(line.virtual, self._classes[priority].present)
            self._classes[priority].put(line)

    def _turn(self, barren: set[Priority]) -> Priority | None:
        chosen: Priority | None = None
        for priority, each in self._classes.items():
            if priority not in barren and each.active and (chosen is None or each.passed >= _TURNS_PASSED):
                chosen = priority
        return chosen

    def _choose(self, priority: Priority, drawable: Callable[[str], bool]) -> Taken[W] | None:
        found = self._classes[priority]
        fruitless: list[QueuedLine[W]] = []
        taken: Taken[W] | None = None
        while taken is None and found.active and len(fruitless) < _WINDOW:
            virtual, _, line = heapq.heappop(found.active)
            if line.cap is not None and self._running[line.tenant] >= line.cap:
                self._held.setdefault(line.tenant, []).append((priority, line))
                continue
            job = line.pick(drawable)
            fruitless.append(line)
            if job is not None:
                taken = Taken(job, line.tenant, priority, virtual)
        for line in fruitless if taken is None else fruitless[:-1]:
            found.put(line)
        if taken is not None:
            self._note_turn(priority)
            self._start(found, fruitless[-1], taken)
        return taken

    def _start(self, found: _Class[W], line: QueuedLine[W], taken: Taken[W]) -> None:
        self._running[line.tenant] += 1
        found.present = taken.virtual
        line.virtual = taken.virtual + taken.job.price
        if line:
            found.put(line)

    def _note_turn(self, chosen: Priority) -> None:
        lower = False
        for priority, each in self._classes.items():
            if lower and each.active:
                each.passed += 1
            lower = lower or priority == chosen
        self._classes[chosen].passed = 0
