"""What a gateway does by the clock: watching Redis' memory, and letting deadlines pass where no worker is alive."""

from __future__ import annotations

import asyncio

import structlog

from service.contract.errors import Overloaded, Unavailable
from service.jobs.async_store import AsyncJobStore

log = structlog.get_logger(__name__)


class Housekeeping:
    """A background task. `check` is what submits ask: whether Redis has room."""

    _rounds: asyncio.Task[None] | None = None

    def __init__(self, store: AsyncJobStore, *, refuse_ratio: float, interval_s: float) -> None:
        self._store = store
        self._refuse_ratio = refuse_ratio
        self._interval_s = interval_s
        self._memory_ratio: float | None = None

    def check(self) -> None:
        """Return, or raise `Overloaded` where memory is left for claims and commits only."""
        if self._memory_ratio is not None and self._memory_ratio >= self._refuse_ratio:
            raise Overloaded("The queue's memory is almost full; nothing new is taken until it has drained.")

    def start(self) -> None:
        """Begin to do one round after the other. An outage of Redis only skips rounds."""
        self._rounds = asyncio.create_task(self._run(), name="housekeeping")

    async def stop(self) -> None:
        """End."""
        # Once is not enough: a connection that is just being made may swallow a cancellation (seen 1 in 50).
        while self._rounds and not self._rounds.done():
            self._rounds.cancel()
            await asyncio.wait({self._rounds}, timeout=0.1)

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except (Unavailable, Overloaded) as err:
                log.info("housekeeping_skipped", reason=err.code)
            await asyncio.sleep(self._interval_s)

    async def round(self) -> None:
        """Look at the memory, end what is past its deadline, ring lost bells. Leases are for agents to take back."""
        self._memory_ratio = await self._store.memory_ratio()
        await self._store.reap(take_back=False)
