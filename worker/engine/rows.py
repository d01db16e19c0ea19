"""How many rows a call may have: as many as were seen to fit, doubled while they do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch

#: Rows of one call, whatever would fit: beyond it a call only takes longer.
MOST_ROWS = 64
#: Part of the free memory that a call may be expected to take.
_SHARE = 0.8
#: Kinds of calls that are remembered.
_KEYS = 512
#: Good calls at a lowered ceiling until a wider one is tried: what took the memory may be gone. Doubled by each try
#: that fails, up to the second number.
RETRY_CALLS, _MOST_RETRY_CALLS = 64, 8192

T = TypeVar("T")


class MemoryGauge(Protocol):
    """Measures what a call takes beyond what was there before it, bytes."""

    def begin(self) -> None:
        """A call begins."""
        ...

    def peak_bytes(self) -> int | None:
        """Return what the call that began took at its height; None where that cannot be known."""
        ...

    def free_bytes(self) -> int:
        """Return what a call could take now."""
        ...


class CudaGauge:
    """The caching allocator's own books: no synchronisation with the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def begin(self) -> None:
        """See the protocol."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def peak_bytes(self) -> int | None:
        """See the protocol."""
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def free_bytes(self) -> int:
        """Return what the device has free and what the allocator holds unused."""
        free, _ = torch.cuda.mem_get_info(self._device)
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + held


class NoGauge:
    """A device whose memory is the machine's: the operating system knows, torch does not."""

    def begin(self) -> None:
        """See the protocol."""

    def peak_bytes(self) -> int | None:
        """See the protocol."""
        return None

    def free_bytes(self) -> int:
        """See the protocol."""
        return 0


@dataclass(frozen=True, slots=True)
class _Width:
    """What is known of one kind of call."""

    #: Rows that were seen to fit, or follow from what was measured.
    proven: int
    #: Rows that no call may exceed; under the most of all where wider ones failed.
    ceiling: int
    #: `proven` is what an engine before this one says.
    told: bool = False
    #: Calls that fitted since the ceiling was set, as wide as it lets them or nearly so.
    good: int = 0
    #: Good calls until a wider one is tried.
    patience: int = RETRY_CALLS
    #: The ceiling was raised to try what had failed, and no call has been so wide since.
    on_trial: bool = False

    def after_success(self, rows: int, affordable: int | None, most: int) -> _Width:
        """`affordable`: rows that the memory would be enough for by this call's measure; None = it was not measured."""
        # What was told is believed no further than the first measurement agrees.
        proven, fits = (0, max(2 * rows, self.proven)) if self.told else (self.proven, 2 * rows)
        if affordable is not None:
            fits = min(fits, affordable)
        learnt = replace(self, proven=max(proven, rows, min(fits, most)), told=False)
        if 2 * rows <= self.ceiling:
            return learnt
        learnt = replace(learnt, good=self.good + 1, on_trial=False)
        if self.ceiling >= most or learnt.good < self.patience:
            return learnt
        return replace(learnt, good=0, ceiling=min(most, 2 * self.ceiling), on_trial=True)

    def after_failure(self, rows: int) -> _Width:
        """A call of so many rows did not fit."""
        half = max(1, rows // 2)
        patience = min(2 * self.patience, _MOST_RETRY_CALLS) if self.on_trial else self.patience
        return _Width(proven=0 if self.told else half, ceiling=half, patience=patience)


class RowLimits:
    """The most rows of a call by its key. A call that ran out of memory halves its key's limit, for many calls."""

    def __init__(self, gauge: MemoryGauge, *, cautious: bool, most: int = MOST_ROWS) -> None:
        """`cautious`: begin with one request where nothing is known yet, as a device's own memory asks for."""
        self._gauge = gauge
        self._most = most
        self._unknown = _Width(proven=0 if cautious else most, ceiling=most)
        self._known: OrderedDict[Hashable, _Width] = OrderedDict()
        #: What the last call took, bytes; None where that cannot be known.
        self.peak_bytes: int | None = None

    def limit(self, key: Hashable) -> int:
        """Return the most rows of the next call; 0 lets one request through, however many rows it has."""
        width = self._known.get(key, self._unknown)
        return min(width.proven, width.ceiling)

    def prime(self, key: Hashable, rows: int, peak_bytes: int) -> None:
        """Begin a key with what earlier engines say: that a call of so many rows took so much memory.

        Nothing happens to a key of which more is known, or on a device that begins with the most.
        """
        if key not in self._known and self._unknown.proven < self._most:
            fits = min(2 * rows, self._affordable(rows, peak_bytes), self._most)
            self._remember(key, _Width(proven=fits, ceiling=self._most, told=True))

    def measure(
        self, key: Hashable, rows: int, call: Callable[[], T], *, teaches: Callable[[], bool] = lambda: True
    ) -> T:
        """Make the call and learn from it; what it raises is raised, and is learnt from by `failed`.

        `teaches` says, once the call was made, whether what it took is what the next will take.
        """
        self.peak_bytes = None
        self._gauge.begin()
        result = call()
        if not teaches():
            return result
        peak = self.peak_bytes = self._gauge.peak_bytes()
        affordable = self._affordable(rows, peak) if peak is not None and peak > 0 else None
        self._remember(key, self._known.get(key, self._unknown).after_success(rows, affordable, self._most))
        return result

    def failed(self, key: Hashable, rows: int) -> None:
        """A call of this many rows ran out of memory."""
        self._remember(key, self._known.get(key, self._unknown).after_failure(rows))

    def forget(self, key: Hashable) -> None:
        """Begin anew with a key that now means something else."""
        self._known.pop(key, None)

    def _affordable(self, rows: int, peak_bytes: int) -> int:
        return int(_SHARE * self._gauge.free_bytes() / peak_bytes * rows)

    def _remember(self, key: Hashable, width: _Width) -> None:
        self._known.pop(key, None)
        self._known[key] = width
        while len(self._known) > _KEYS:
            self._known.popitem(last=False)
