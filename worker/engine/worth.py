"""What a model in memory is worth, and which have to go when another needs room. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

#: s in which a use comes to count half.
HALF_LIFE_S = 600.0


class Worth:
    """How much reading a model anew would cost, per byte that it takes, weighted by how often it is used.

    GreedyDual-Size-Frequency (Cherkasova 1998) with forgetting in place of an ageing threshold.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses = 0.0
        self._at_s = clock()
        self.size_bytes = 0
        self.reload_s = 0.0

    def used(self) -> None:
        """Note one use, now."""
        self._uses, self._at_s = self._uses_now() + 1, self._clock()

    def value(self) -> float:
        """Return the seconds of reading per byte that keeping it is expected to save; comparable only to others."""
        return self._uses_now() * self.reload_s / max(1, self.size_bytes)

    def _uses_now(self) -> float:
        return self._uses * 0.5 ** ((self._clock() - self._at_s) / HALF_LIFE_S)


class Occupant(Protocol):
    """A model in memory."""

    @property
    def worth(self) -> Worth: ...

    @property
    def leaving(self) -> bool:
        """Whether it was told to go, and is still in use."""
        ...


P = TypeVar("P", bound=Occupant)


def victims(occupants: Iterable[P], needed_bytes: int, budget_bytes: int) -> Sequence[P]:
    """Return who has to go so that `needed_bytes` fit into the budget beside those that stay.

    Those that are leaving already go first, then the least valuable. All go where even that is not enough: a model
    that is larger than the budget is tried alone.
    """
    staying = sorted(occupants, key=lambda each: (not each.leaving, each.worth.value()))
    going: list[P] = []
    while staying and needed_bytes + sum(each.worth.size_bytes for each in staying) > budget_bytes:
        going.append(staying.pop(0))
    return going
