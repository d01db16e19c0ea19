"""What a submit is refused with where there is no room, and when its caller may come back."""

from __future__ import annotations

from typing import Protocol

from service.contract.errors import LimitReached, Overloaded
from service.generations.draining import DrainRates

#: s; memory comes back when retentions are over, which no end of a job hastens.
_MEMORY_RETRY_S = 10


class MemoryWatch(Protocol):
    """Whether Redis has room."""

    def is_full(self) -> bool:
        """Tell whether memory is left for claims and commits only."""
        ...


class Admission:
    """Every refusal for want of room, each with a `Retry-After` by the pace of its queue where that is known."""

    def __init__(self, *, memory: MemoryWatch, drains: DrainRates) -> None:
        self._memory = memory
        self._drains = drains

    async def check(self, pool: str) -> None:
        """Return, or raise `Overloaded` where the system as a whole has no room."""
        if self._memory.is_full():
            drained_s = await self._drains.retry_after_s("pool", pool) or 0
            raise Overloaded(
                "The queue's memory is almost full; nothing new is taken until it has drained.",
                retry_after_s=max(_MEMORY_RETRY_S, drained_s),
            )

    async def tenant_full(self, tenant: str) -> LimitReached:
        """Return the refusal of a tenant that has as many jobs waiting as it may."""
        return LimitReached(
            "As many generations as this tenant may have are waiting.",
            retry_after_s=await self._drains.retry_after_s("tenant", tenant),
        )

    async def pool_full(self, pool: str) -> Overloaded:
        """Return the refusal of a pool in which as many jobs wait as may."""
        return Overloaded(retry_after_s=await self._drains.retry_after_s("pool", pool))
