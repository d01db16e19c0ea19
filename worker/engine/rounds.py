"""Whose turn it is: queues by key, served by deficit round robin (Shreedhar and Varghese 1996) with ageing.

Works of one key can be done together, works of different keys cannot, so each key has a queue, and the device's time is
shared among the keys: a turn costs what its last turns took, measured. A key's credit grows each round by a share for
each work that waits in it, so that a picture of a rare size gets as much time as any of a common one, and grows faster
the longer its oldest work has waited.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from worker.engine.keys import kind_of

W = TypeVar("W")

#: s of waiting that double the growth of a key's credit.
AGEING_S = 1.0
#: Weight of the last turn in the running mean of a key's cost.
_LEARNING = 0.3
#: s; what a turn of a key costs that was never served, and the least that any is taken to cost.
_FIRST_GUESS_S = 0.01
_LEAST_S = 1e-5
#: s; the most that a turn is taken to cost by what is only said of it, so that nothing said puts a key off for long.
_MOST_EXPECTED_S = 10.0


@dataclass(slots=True)
class _Queue(Generic[W]):
    works: deque[tuple[W, float]] = field(default_factory=deque)
    credit_s: float = 0.0


class Rounds(Generic[W]):
    """Works that wait, by key. Not for more than one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queues: OrderedDict[Hashable, _Queue[W]] = OrderedDict()
        #: Mean cost of a turn by key, s; the last few hundred keys.
        self._costs_s: OrderedDict[Hashable, float] = OrderedDict()
        #: Those of which the cost is only expected.
        self._expected: set[Hashable] = set()

    def __len__(self) -> int:
        return sum(len(queue.works) for queue in self._queues.values())

    def add(self, key: Hashable, work: W) -> None:
        """Let a work wait at the end of its key's queue."""
        self._queues.setdefault(key, _Queue()).works.append((work, self._clock()))

    def waiting(self, key: Hashable, count: Callable[[W], int]) -> int:
        """Return the sum of the counts of all works that wait by a key."""
        return sum(count(work) for work, _ in self._queues[key].works)

    def next_turn(self) -> Hashable:
        """Return the key whose turn it is, and charge it. Raises `LookupError` when nothing waits."""
        if not self._queues:
            raise LookupError("nothing waits")
        now_s = self._clock()
        growths = {key: self._growth(queue, now_s) for key, queue in self._queues.items()}
        # Rounds until the first can pay, skipped at once; the queue that waited longest for its turn goes first.
        rounds = {k: max(0.0, (self._cost_s(k) - q.credit_s) / growths[k]) for k, q in self._queues.items()}
        first = min(rounds, key=rounds.__getitem__)
        for key, queue in self._queues.items():
            queue.credit_s += rounds[first] * growths[key]
        self._queues[first].credit_s -= self._cost_s(first)
        self._queues.move_to_end(first)
        return first

    def take(self, key: Hashable, count: Callable[[W], int], limit: int) -> list[W]:
        """Remove and return works from the front of a key's queue: at least one, then as long as their counts fit."""
        queue = self._queues[key]
        taken: list[W] = []
        left = limit
        while queue.works and (not taken or count(queue.works[0][0]) <= left):
            work, _ = queue.works.popleft()
            left -= count(work)
            taken.append(work)
        if not queue.works:
            # Credit is for waiting: none is carried over by a key that had nothing to wait for.
            del self._queues[key]
        return taken

    def expect(self, kind: Hashable, seconds: float) -> None:
        """Take a turn of this kind to cost that much until one was measured, unless its cost was learnt here."""
        if kind not in self._costs_s:
            self._expected.add(kind)
            self._cost(kind, min(seconds, _MOST_EXPECTED_S))

    def took(self, key: Hashable, seconds: float) -> None:
        """Learn what a turn of this key cost."""
        kind = kind_of(key)
        known = self._costs_s.pop(kind, seconds)
        if kind in self._expected:
            self._expected.discard(kind)
            known = seconds
        self._cost(kind, known + _LEARNING * (seconds - known))

    def _cost(self, kind: Hashable, seconds: float) -> None:
        self._costs_s[kind] = seconds
        while len(self._costs_s) > 512:
            forgotten, _ = self._costs_s.popitem(last=False)
            self._expected.discard(forgotten)

    def _cost_s(self, key: Hashable) -> float:
        return max(_LEAST_S, self._costs_s.get(kind_of(key), _FIRST_GUESS_S))

    def _growth(self, queue: _Queue[W], now_s: float) -> float:
        waited_s = max(0.0, now_s - queue.works[0][1])
        return len(queue.works) * (1 + waited_s / AGEING_S)
