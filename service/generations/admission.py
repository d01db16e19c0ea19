"""What a submit is refused with where there is no room, and when its caller may come back."""

from __future__ import annotations

from typing import Protocol

from service.contract.errors import DarkroomError, FieldError, InvalidRequest, LimitReached, Overloaded, RateLimited
from service.contract.rate import RequestRate
from service.generations.draining import DrainRates
from service.tenants.authentication import Caller

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

    async def tenant_full(self, caller: Caller, asked: int) -> DarkroomError:
        """Return the refusal of `asked` more jobs of a tenant, which has too many waiting for that."""
        most = caller.limits.max_queued
        if most is not None and 0 < most < asked:
            return _too_many(f"must be at most {most}: as many generations of this tenant may wait at once")
        return LimitReached(
            "As many generations as this tenant may have are waiting."
            if asked == 1
            else f"So many generations of this tenant are waiting that {asked} more are too many.",
            retry_after_s=await self._drains.retry_after_s("tenant", caller.tenant),
        )

    async def pool_full(self, pool: str, asked: int, most: int) -> DarkroomError:
        """Return the refusal of a call of `asked` jobs by a pool in which too many wait for that; `most` may."""
        if most < asked:
            return _too_many(f"must be at most {most}: as many generations may wait at once")
        return Overloaded(retry_after_s=await self._drains.retry_after_s("pool", pool))


def rate_refusal(rate: RequestRate, asked: int) -> DarkroomError:
    """Return the refusal of a call of `asked` jobs by a tenant's rate."""
    if asked > rate.burst:
        return _too_many(
            f"must be at most {rate.burst}: of its {rate.per_minute} generations a minute this tenant may create as "
            "many at once"
        )
    return RateLimited(rate, asked)


def _too_many(message: str) -> InvalidRequest:
    """Return the refusal of a batch that would never fit."""
    return InvalidRequest([FieldError("/requests", message)])
