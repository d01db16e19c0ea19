"""How many rows the next call may have: as many as fit in memory, and in the time that a step may take.

Learns from every call, and knows the calls of engines before this one by their labels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

from service.contract.costs import CallLabel
from worker.engine.ledger import Ledger
from worker.engine.rows import RowLimits

T = TypeVar("T")

#: Kinds of calls whose labels are remembered.
_KINDS = 512


class RowBudget:
    """Row limits of calls by their kind (`worker.engine.keys.kind_of`). For one thread."""

    def __init__(self, limits: RowLimits, ledger: Ledger, *, step_target_s: float = 0.0) -> None:
        """`step_target_s`: how long a denoiser call of several requests should take at most; 0 = as it comes."""
        self._limits = limits
        self._ledger = ledger
        self._step_target_s = step_target_s
        self._labels: OrderedDict[Hashable, CallLabel] = OrderedDict()

    def meet(self, kind: Hashable, label: CallLabel | None) -> float | None:
        """Prepare for works of this kind; return what a call of a kind that is new here is known to take, s."""
        if label is None or self._labels.get(kind) == label:
            return None
        # Kinds hold addresses of modules: one that means another model now has nothing to do with what it was.
        was = self._labels.pop(kind, None)
        if was is not None and (was.model, was.sha256) != (label.model, label.sha256):
            self._limits.forget(kind)
        self._labels[kind] = label
        while len(self._labels) > _KINDS:
            self._labels.popitem(last=False)
        if memory := self._ledger.memory(label):
            self._limits.prime(kind, *memory)
        return self._ledger.turn_s(label)

    def limit(self, kind: Hashable) -> int:
        """Return the most rows of the next call; 0 lets one request through, however many rows it has."""
        rows = self._limits.limit(kind)
        label = self._labels.get(kind)
        if self._step_target_s and label is not None and label.kind == "denoise":
            rows = min(rows, self._ledger.rows_within(label, self._step_target_s))
        return rows

    def measure(
        self, kind: Hashable, rows: int, call: Callable[[], T], *, teaches: Callable[[], bool] = lambda: True
    ) -> T:
        """Make the call and learn what memory it takes, if it `teaches` that; what it raises is raised."""
        return self._limits.measure(kind, rows, call, teaches=teaches)

    @property
    def peak_bytes(self) -> int | None:
        """What the last call took; None where that cannot be known."""
        return self._limits.peak_bytes

    def failed(self, kind: Hashable, rows: int) -> None:
        """A call of this many rows ran out of memory."""
        self._limits.failed(kind, rows)

    def took(self, label: CallLabel | None, rows: int, seconds: float, peak_bytes: int | None) -> None:
        """Note what a call took, now that it has ended."""
        if label is not None:
            self._ledger.measured(label, rows, seconds, peak_bytes)
