"""When leases may be taken back: not before Redis has been up, and seen by us, for one whole lease.

After an outage every lease looks expired although its agent lives and will renew as soon as it can.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.contract.errors import DarkroomError
from service.jobs.async_store import AsyncJobStore
from service.jobs.store import LEASE_MS

log = structlog.get_logger(__name__)

#: s between two passes.
_PASS_S = 1.0


class Patience:
    """Decides from each contact with Redis whether this process may take leases back. Times in seconds, monotonic."""

    def __init__(self) -> None:
        self._contact_since_s: float | None = None

    def lost(self) -> None:
        """Note that Redis did not answer."""
        self._contact_since_s = None

    def may_take_back(self, *, now_s: float, uptime_s: float) -> bool:
        """Note an answer of a server that is up for `uptime_s`; return whether one whole lease has been seen."""
        if self._contact_since_s is None:
            self._contact_since_s = now_s
        lease_s = LEASE_MS / 1000
        return uptime_s > lease_s and now_s - self._contact_since_s >= lease_s


class GatewayReaper:
    """The reaper of a gateway: deadlines must pass and leases end while every worker is down."""

    def __init__(self, redis: Redis, store: AsyncJobStore) -> None:
        self._redis = redis
        self._store = store

    async def run(self) -> None:
        """Make a pass each second until the task is canceled."""
        patience = Patience()
        while True:
            await asyncio.sleep(_PASS_S * random.uniform(0.8, 1.2))  # noqa: S311 - spreads passes
            try:
                uptime_s = float(cast("dict[str, int]", await self._redis.info("server"))["uptime_in_seconds"])
                take_back = patience.may_take_back(now_s=time.monotonic(), uptime_s=uptime_s)
                done = await self._store.reap(take_back=take_back)
            except (RedisError, OSError, DarkroomError) as err:
                patience.lost()
                log.info("reaper_pass_failed", error=type(err).__name__)
                continue
            if done.leases or done.deadlines:
                log.info("reaped", leases=done.leases, deadlines=done.deadlines, bells=done.bells)
