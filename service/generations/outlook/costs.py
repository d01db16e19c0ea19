"""What calls cost on the workers' devices, as kept in Redis; read seldom, as it is much and changes slowly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from service.contract.costs import CallCost
from service.jobs.async_store import AsyncJobStore

#: s that costs are kept; and s where there were none, as with a device's first jobs.
_KEPT_S, _MISSING_S = 10.0, 1.0
#: Kinds of devices that are remembered.
_DEVICES = 64


class CostBook:
    """A short-lived copy of the kept costs, by kind of device."""

    def __init__(self, store: AsyncJobStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, tuple[float, tuple[CallCost, ...]]] = {}

    async def of(self, device_names: Iterable[str]) -> tuple[CallCost, ...]:
        """Return what calls cost on these devices, of all of them together. Raises `Unavailable`."""
        found: list[CallCost] = []
        for name in sorted({name for name in device_names if name})[:_DEVICES]:
            until, costs = self._known.get(name, (float("-inf"), ()))
            if until <= self._clock():
                costs = await self._store.costs(name)
                if len(self._known) >= _DEVICES:
                    self._known.clear()
                self._known[name] = self._clock() + (_KEPT_S if costs else _MISSING_S), costs
            found += costs
        return tuple(found)
