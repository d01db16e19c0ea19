"""How fast pools and tenants drain, read from Redis at most once a second each."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from service.contract.errors import Overloaded, Unavailable
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import Queued
from service.jobs.draining import seconds_to_a_place

log = structlog.get_logger(__name__)

#: Pools and tenants that a gateway remembers the pace of.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class _Pace:
    seconds: int | None
    until: float


class DrainRates:
    """A short-lived copy of the pace of each queue. A refusal has to be cheap: it is what an overload is made of."""

    def __init__(
        self, store: AsyncJobStore, *, cache_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._cache_s = cache_s
        self._clock = clock
        self._known: OrderedDict[tuple[Queued, str], _Pace] = OrderedDict()

    async def retry_after_s(self, kind: Queued, name: str) -> int | None:
        """Return the seconds until a place is expected to be free, 1 to 600; None where nothing is known."""
        asked = kind, name
        known = self._known.get(asked)
        if known is not None and known.until > self._clock():
            return known.seconds
        # Whoever is refused while this reads is told what was known before.
        self._remember(asked, known.seconds if known else None)
        try:
            seconds = seconds_to_a_place(await self._store.ended_lately(kind, name))
        except (Unavailable, Overloaded) as err:
            # The refusal stands, whatever is known of the pace.
            log.info("pace_unknown", of=kind, reason=err.code)
            return known.seconds if known else None
        self._remember(asked, seconds)
        return seconds

    def _remember(self, asked: tuple[Queued, str], seconds: int | None) -> None:
        self._known[asked] = _Pace(seconds, self._clock() + self._cache_s)
        self._known.move_to_end(asked)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
