"""How many rows a call may have: as many as were seen to fit, doubled while they do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

import torch

#: Rows of one call, whatever would fit: beyond it a call only takes longer.
MOST_ROWS = 64
#: Part of the free memory that a call may be expected to take.
_SHARE = 0.8
#: Kinds of calls that are remembered.
_KEYS = 512

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


class RowLimits:
    """The most rows of a call by its key. A call that ran out of memory halves its key's limit for good."""

    def __init__(self, gauge: MemoryGauge, *, cautious: bool, most: int = MOST_ROWS) -> None:
        """`cautious`: begin with one request where nothing is known yet, as a device's own memory asks for."""
        self._gauge = gauge
        self._cautious = cautious
        self._most = most
        #: Key → (limit that was proven, ceiling that failed).
        self._known: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()

    def limit(self, key: Hashable) -> int:
        """Return the most rows of the next call; 0 lets one request through, however many rows it has."""
        start = 0 if self._cautious else self._most
        proven, ceiling = self._known.get(key, (start, self._most))
        return min(proven, ceiling)

    def measure(self, key: Hashable, rows: int, call: Callable[[], T]) -> T:
        """Make the call and learn from it; what it raises is raised, and is learnt from by `failed`."""
        self._gauge.begin()
        result = call()
        peak = self._gauge.peak_bytes()
        fits = 2 * rows
        if peak is not None and peak > 0:
            fits = min(fits, int(_SHARE * self._gauge.free_bytes() / peak * rows))
        proven, ceiling = self._known.get(key, (0, self._most))
        self._remember(key, max(proven, rows, min(fits, self._most)), ceiling)
        return result

    def failed(self, key: Hashable, rows: int) -> None:
        """A call of this many rows ran out of memory."""
        half = max(1, rows // 2)
        self._remember(key, half, half)

    def _remember(self, key: Hashable, proven: int, ceiling: int) -> None:
        self._known.pop(key, None)
        self._known[key] = (proven, ceiling)
        while len(self._known) > _KEYS:
            self._known.popitem(last=False)
