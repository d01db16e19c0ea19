"""Whose turn it is among classes of priority, counted ahead over as many jobs as there are. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.contract.job import PRIORITIES, Priority
from service.jobs.scripts import LIMITS

_TURNS_PASSED = LIMITS["turns_passed"]
#: Classes pass each other over in a pattern that comes back after so many turns.
_PATTERN = (_TURNS_PASSED + 1) * _TURNS_PASSED


@dataclass(slots=True)
class _Turns:
    """All by class, in the order of `PRIORITIES`: what waits, how often it was passed over, what has been taken."""

    left: list[int]
    over: list[int]
    done: list[int]

    def turn(self) -> None:
        chosen = -1
        for at, there in enumerate(self.left):
            if there > 0 and (chosen < 0 or self.over[at] >= _TURNS_PASSED):
                chosen = at
        for at in range(chosen + 1, len(self.left)):
            if self.left[at] > 0:
                self.over[at] += 1
        self.over[chosen] = 0
        self.take([int(at == chosen) for at in range(len(self.left))])

    def take(self, jobs: list[int]) -> None:
        self.left = [there - each for there, each in zip(self.left, jobs, strict=True)]
        self.done = [there + each for there, each in zip(self.done, jobs, strict=True)]

    def leap(self) -> None:
        """Take as many patterns of turns at once as there are until a class has nothing left."""
        before, waited = list(self.done), [there > 0 for there in self.left]
        for _ in range(min(_PATTERN, sum(self.left))):
            self.turn()
        if [there > 0 for there in self.left] == waited:
            shares = [done - was for done, was in zip(self.done, before, strict=True)]
            times = min(there // share for there, share in zip(self.left, shares, strict=True) if share)
            self.take([times * share for share in shares])


def turns(waiting: Mapping[Priority, int], passed: Mapping[Priority, int], *, exact: int) -> list[tuple[int, ...]]:
    """Return how many jobs of each class, in the order of `PRIORITIES`, have been taken after some turns, ascending.

    Each of the first `exact` turns is there; after them classes share as they do in the long run, and only the turns
    are there at which that changes.
    """
    state = _Turns(
        [waiting.get(priority, 0) for priority in PRIORITIES],
        [passed.get(priority, 0) for priority in PRIORITIES],
        [0] * len(PRIORITIES),
    )
    found = [tuple(state.done)]
    while any(state.left):
        if len(found) <= exact:
            state.turn()
        elif sum(1 for there in state.left if there) == 1:
            state.take(list(state.left))
        else:
            state.leap()
        found.append(tuple(state.done))
    return found
