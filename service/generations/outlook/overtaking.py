"""What comes later and goes before: how many do, told from one look to the next, and what it adds to a wait. Pure.

A forecast knows the jobs that wait. While more come, those with more right to a place go before them: of a higher
class, or of a tenant whose line is shorter. So while jobs come waits are told too short, the longer ones the more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.contract.forecast import LONGEST_S, MOST_OVERTAKING_PER_S, Overtaking
from service.contract.job import Priority

#: s between two looks beyond which one knows nothing of what lay between.
_LONGEST_S = 5.0
#: Arrivals after which what was seen of who goes before whom counts half.
_HALF_LIFE = 30.0
#: Arrivals by which nobody was overtaken that count as seen at first.
_TRUST = 3.0
#: Arrivals that were due in a silence beyond which no more are expected: by chance so long in 1 of 20.
_MISSED = 3.0
#: Places that are reckoned with besides those of the jobs that wait: a short line is another one at the next look.
_MORE_PLACES = 6
#: s after which what was seen of how fast jobs come counts half.
_LATELY_S = 10.0
#: Jobs that are expected yet ÷ those that have come without a pause. Nothing is known of how many callers have to
#: submit, so another x come after a with the probability a / (a + x). A wait that grows as a + x is told with the least
#: relative error where x is the median of these, weighed by 1 / (a + x).
_YET = math.sqrt(2) - 1
#: A wait is told this many times as long at most.
_MOST = 4.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A waiting job, by name."""

    job_id: str
    priority: Priority
    sequence: int
    #: Jobs that start before it.
    before: int


@dataclass(frozen=True, slots=True)
class OrderLook:
    """Who waits in a pool at one moment."""

    at_ms: int
    #: The last one that was given.
    sequence: int
    #: By name; in the order of their starts.
    jobs: Mapping[str, Standing]

    def places(self) -> int:
        """Return to how many places of the order one more may go, as far as its jobs are known by name."""
        return _MORE_PLACES + max((job.before for job in self.jobs.values()), default=-1)


@dataclass(slots=True)
class _Spell:
    """A time in which jobs come."""

    #: s; when some came last.
    last_s: float
    jobs: int = 0
    #: Jobs that came lately, and the s in which they did.
    lately: float = 0.0
    lately_s: float = 0.0

    def come(self, now_s: float, jobs: int) -> None:
        """Note that some came since the last did."""
        keep = 0.5 ** ((now_s - self.last_s) / _LATELY_S)
        self.lately, self.lately_s = keep * self.lately + jobs, keep * self.lately_s + now_s - self.last_s
        self.last_s, self.jobs = now_s, self.jobs + jobs

    def rate(self) -> float:
        """Return how many come in a second."""
        return self.lately / self.lately_s


@dataclass(slots=True)
class _Share:
    """Of one class, on the mean of its jobs: arrivals that went before, and that would have by going anywhere."""

    overtakers: float = 0.0
    chances: float = _TRUST


class OvertakingMeter:
    """How fast a wait grows while jobs come, by class of priority."""

    def __init__(self) -> None:
        self._last: OrderLook | None = None
        self._spell: _Spell | None = None
        self._shares: dict[Priority, _Share] = {}

    def observe(self, look: OrderLook) -> None:
        """Take one look, and learn from who has come since the last one."""
        last, self._last = self._last, look
        if last is None:
            return
        seconds, came = (look.at_ms - last.at_ms) / 1000, look.sequence - last.sequence
        if not 0 < seconds <= _LONGEST_S or came < 0:
            self._spell = None
            return
        now_s = look.at_ms / 1000
        if came:
            self._spell = self._spell or _Spell(last.at_ms / 1000)
            self._spell.come(now_s, came)
            self._learn(last, look, came)
        elif self._spell and (now_s - self._spell.last_s) * self._spell.rate() > _MISSED:
            self._spell = None

    def rates(self) -> dict[Priority, Overtaking]:
        """Return how fast waits grow, and how long yet; of the classes in which they do."""
        if self._spell is None or self._last is None:
            return {}
        rate = self._spell.rate()
        places = self._last.places()
        for_s = min(LONGEST_S, _YET * self._spell.jobs / rate)
        return {
            priority: Overtaking(
                rate_per_s=min(MOST_OVERTAKING_PER_S, round(rate * share.overtakers / share.chances / places, 5)),
                for_s=round(for_s, 3),
            )
            for priority, share in self._shares.items()
            if share.overtakers > 0
        }

    def _learn(self, last: OrderLook, look: OrderLook, came: int) -> None:
        keep = 0.5 ** (came / _HALF_LIFE)
        for priority, (newer, before) in _overtaken(last, look).items():
            share = self._shares.setdefault(priority, _Share())
            share.overtakers = keep * share.overtakers + newer
            share.chances = _TRUST + keep * (share.chances - _TRUST) + came * before / last.places()


def _overtaken(last: OrderLook, look: OrderLook) -> dict[Priority, tuple[float, float]]:
    """Return by class (newcomers before, jobs that were before) of those that waited at both looks, on the mean."""
    found: dict[Priority, list[tuple[int, int]]] = {}
    newer = 0
    for job in look.jobs.values():
        was = last.jobs.get(job.job_id)
        if was is not None:
            found.setdefault(job.priority, []).append((newer, was.before))
        elif job.sequence > last.sequence:
            newer += 1
    return {priority: (_mean(n for n, _ in each), _mean(b for _, b in each)) for priority, each in found.items()}


def _mean(numbers: Iterable[int]) -> float:
    known = list(numbers)
    return sum(known) / len(known)


def stretched(start_s: float, overtaking: Overtaking | None) -> float:
    """Return the s to a start which is `start_s` away if nobody comes any more.

    Those that go before a job come at a rate of r for each s that is still before it. It goes down evenly from W, the
    whole wait, and they come for h s of it. So W = start (1 + r h (1 - h / 2W)), where h is W if they come that long.
    """
    if overtaking is None or start_s <= 0:
        return start_s
    rate, for_s = overtaking.rate_per_s, overtaking.for_s
    slower = 1 - rate * start_s / 2
    if slower > 0 and start_s / slower <= for_s:
        return min(_MOST * start_s, start_s / slower)
    both = start_s * (1 + rate * for_s)
    return min(_MOST * start_s, (both + math.sqrt(max(0.0, both * both - 2 * start_s * rate * for_s * for_s))) / 2)
