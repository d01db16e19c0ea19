"""What a gateway does by the clock: watching Redis' memory, and reaping, also where no worker is alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from service.contract.errors import Overloaded, Unavailable
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import Reaped
from service.jobs.reaper import Patience
from service.jobs.soundness import Finding

log = structlog.get_logger(__name__)


class Housekeeping:
    """A background task. `is_full` is what submits ask: whether Redis has room."""

    _rounds: asyncio.Task[None] | None = None

    def __init__(self, store: AsyncJobStore, *, refuse_ratio: float, interval_s: float) -> None:
        self._store = store
        #: Hears what each pass of the reaper did.
        self.on_reaped: Callable[[Reaped], None] | None = None
        self._refuse_ratio = refuse_ratio
        self._interval_s = interval_s
        self._memory_ratio: float | None = None
        self._patience = Patience()
        #: Told once, and again when they change.
        self._concerns: tuple[Finding, ...] = ()

    @property
    def memory_ratio(self) -> float | None:
        """What Redis has used of its memory; None where it has no limit, or was not asked yet."""
        return self._memory_ratio

    def is_full(self) -> bool:
        """Tell whether Redis has memory left for claims and commits only."""
        return self._memory_ratio is not None and self._memory_ratio >= self._refuse_ratio

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
                self._patience.lost()
                log.info("housekeeping_skipped", reason=err.code)
            except Exception:
                # Deadlines and take-backs go on, whatever a server says of itself.
                self._patience.lost()
                log.exception("housekeeping_failed")
            await asyncio.sleep(self._interval_s)

    async def round(self) -> None:
        """Look at the memory; take back leases that ran out, end what is past its deadline, ring lost bells."""
        server = await self._store.server()
        self._memory_ratio = server.memory_ratio
        if server.concerns != self._concerns:
            self._concerns = server.concerns
            for each in server.concerns:
                log.warning("redis_unsound", check=each.check, found=each.found, advice=each.advice)
        take_back = self._patience.may_take_back(now_s=time.monotonic(), uptime_s=server.uptime_s)
        done = await self._store.reap(take_back=take_back)
        if self.on_reaped is not None:
            self.on_reaped(done)
        if done.leases or done.deadlines:
            log.info("reaped", leases=done.leases, deadlines=done.deadlines, bells=done.bells)
