"""How many jobs wait and run, and for how long, by pool and priority: what gauges show. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from service.contract.job import PRIORITIES, Priority

#: Pools, and tenants of one class, that a census looks at: what it may cost Redis is bounded, some ms at the most.
MOST_POOLS: Final = 64
MOST_TENANTS: Final = 1000


@dataclass(frozen=True, slots=True)
class Waiting:
    """The jobs of one pool and priority that wait."""

    jobs: int
    #: s that the oldest has waited since it was accepted; 0 where none waits.
    oldest_s: float


@dataclass(frozen=True, slots=True)
class PoolCensus:
    """One pool."""

    pool: str
    running: int
    waiting: dict[Priority, Waiting]


def read_census(reply: Sequence[Sequence[str | int]]) -> tuple[PoolCensus, ...]:
    """Read the reply of `census`."""
    return tuple(_pool(line) for line in reply)


def _pool(line: Sequence[str | int]) -> PoolCensus:
    running, *classes = (int(value) for value in line[1:])
    waiting: dict[Priority, Waiting] = {
        priority: Waiting(classes[2 * at], max(0, classes[2 * at + 1]) / 1000) for at, priority in enumerate(PRIORITIES)
    }
    return PoolCensus(cast("str", line[0]), running, waiting)
