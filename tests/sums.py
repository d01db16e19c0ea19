"""Requests that count on a device that can be told to fail: what a batch does to each is seen in its sum."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from service.contract.costs import CallLabel
from worker.engine.batch import Batch
from worker.engine.budget import RowBudget
from worker.engine.ledger import Ledger
from worker.engine.meter import HostMeter, Meter
from worker.engine.rows import MemoryGauge, NoGauge, RowLimits
from worker.engine.strands import gather, share


@dataclass
class Device:
    """Adds one to numbers, several at once."""

    #: A call of more rows runs out of memory.
    fits_rows: int = 1000
    #: Calls, counted from 0, that fail where several share them, though nobody is at fault.
    glitches: frozenset[int] = frozenset()
    #: Calls that run out of memory where several share them, as when something else took it.
    squeezes: frozenset[int] = frozenset()
    #: Raised by every call instead of all else.
    broken: Exception | None = None
    #: Who was in which call, failed ones too.
    calls: list[tuple[str, ...]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)

    def add(self, works: Sequence[Addition]) -> list[int]:
        number, rows = len(self.calls), sum(work.rows for work in works)
        self.calls.append(tuple(work.name for work in works))
        self.widths.append(rows)
        if self.broken is not None:
            raise self.broken
        if rows > self.fits_rows or (number in self.squeezes and len(works) > 1):
            raise MemoryError(f"{rows} rows")
        if number in self.glitches and len(works) > 1:
            raise RuntimeError("a glitch")
        for work in works:
            if work.fails:
                raise ValueError(work.name)
        return [work.value + 1 for work in works]


@dataclass(eq=False)
class Addition:
    """One step of a request."""

    device: Device
    name: str
    value: int
    key: Hashable = "k"
    rows: int = 1
    fails: bool = False
    label: CallLabel | None = None

    def alone(self) -> int:
        return self.device.add([self])[0]

    def together(self, works: Sequence[Addition]) -> list[int]:
        return self.device.add(works)


def count(
    device: Device,
    name: str,
    *,
    steps: int = 3,
    start: int = 0,
    fails_at: int | None = None,
    key: Hashable = "k",
    rows: int = 1,
    label: CallLabel | None = None,
) -> int:
    """Return start + steps, counted on the device one shared step after the other."""
    value = start
    for step in range(steps):
        value = share(Addition(device, name, value, key, rows, step == fails_at, label))
    return value


@contextmanager
def engine_thread() -> Iterator[None]:
    """Work as the engine does: without gradients.

    What exists already is kept out of garbage collections. One follows each lack of memory, and would take a tenth of
    a second to look through all that torch has made.
    """
    gc.freeze()
    with torch.no_grad():
        yield
    gc.unfreeze()


def batch_of(
    *,
    cautious: bool = False,
    gauge: MemoryGauge | None = None,
    meter: Meter | None = None,
    ledger: Ledger | None = None,
    step_target_s: float = 0.0,
) -> Batch:
    """Return a batch that knows nothing of its device's memory but what fails; a lost device raises `DeviceLost`."""
    limits = RowLimits(gauge or NoGauge(), cautious=cautious)
    budget = RowBudget(limits, ledger or Ledger(), step_target_s=step_target_s)
    return Batch(budget, meter or HostMeter(), lost=_lost)


class DeviceLost(BaseException):
    """In place of the end of the process."""


def _lost(error: Exception) -> None:
    raise DeviceLost from error


class Table:
    """A batch, and how its requests ended."""

    def __init__(self, device: Device | None = None, batch: Batch | None = None) -> None:
        self.device = device or Device()
        self.batch = batch or batch_of()
        self.ends: dict[str, Any] = {}

    def join(self, name: str, body: Callable[[], Any] | None = None, *, images: int = 1, **counting: Any) -> Any:
        """Begin a request that counts, or does what `body` does; return its strand."""

        def noted() -> None:
            try:
                self.ends[name] = body() if body else self._gathered(name, images, counting)
            except Exception as err:  # noqa: BLE001 - an end like any other
                self.ends[name] = err

        return self.batch.hub.start(noted)

    def finish(self, *, ticks: int = 200) -> None:
        """Tick until nothing is left to do."""
        for _ in range(ticks):
            if not self.batch.busy:
                return
            self.batch.tick()
        raise AssertionError(f"still busy after {ticks} ticks; ended so far: {self.ends}")

    def _gathered(self, name: str, images: int, counting: dict[str, Any]) -> list[int]:
        start = counting.pop("start", 0)
        bodies = [functools.partial(count, self.device, name, start=start + i, **counting) for i in range(images)]
        return gather(bodies)
