"""What a gateway measures by the clock for its metrics: Redis, the bucket, its own event loop, and the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Executor

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.contract.errors import Overloaded, Unavailable
from service.jobs.async_store import AsyncJobStore
from service.jobs.census import PoolCensus
from service.storage.s3 import ObjectStorage
from service.telemetry import metric_names
from service.telemetry.gateway_metrics import GatewayMetrics

log = structlog.get_logger(__name__)

#: s between two looks at the event loop; the others are multiples of it.
_TICK_S = 0.25
_REDIS_TICKS, _CENSUS_TICKS, _STORAGE_TICKS = 4, 20, 40


class Vitals(Collector):
    """A background task, and what it found last. Where Redis does not answer, the queue has no samples."""

    _ticks: asyncio.Task[None] | None = None
    _probe: asyncio.Task[None] | None = None

    def __init__(
        self, *, metrics: GatewayMetrics, store: AsyncJobStore, storage: ObjectStorage, threads: Executor
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._storage = storage
        self._threads = threads
        self._census: tuple[PoolCensus, ...] = ()

    def start(self) -> None:
        """Begin."""
        self._ticks = asyncio.create_task(self._run(), name="vitals")

    async def stop(self) -> None:
        """End."""
        # Once is not enough: a connection that is just being made may swallow a cancellation (seen 1 in 50).
        for task in (self._ticks, self._probe):
            while task and not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=0.1)

    async def look(self) -> None:
        """Count the queue now. An outage leaves nothing that is no longer true."""
        try:
            self._census = await self._store.census()
        except (Unavailable, Overloaded):
            self._census = ()

    def collect(self) -> Iterator[Metric]:
        """Yield the queue as it was found last. Called on a thread of the metrics' server."""
        census = self._census
        of_class = ["pool", "priority"]
        jobs = GaugeMetricFamily(metric_names.QUEUE_JOBS, "Generations that wait", labels=of_class)
        oldest = GaugeMetricFamily(metric_names.QUEUE_OLDEST_SECONDS, "Wait of the oldest of them, s", labels=of_class)
        running = GaugeMetricFamily(metric_names.RUNNING_JOBS, "Generations that run", labels=["pool"])
        for each in census:
            running.add_metric([each.pool], each.running)
            for priority, waiting in each.waiting.items():
                jobs.add_metric([each.pool, priority], waiting.jobs)
                oldest.add_metric([each.pool, priority], waiting.oldest_s)
        yield from (jobs, oldest, running)

    async def _run(self) -> None:
        tick = 0
        while True:
            if tick % _CENSUS_TICKS == 0:
                await self.look()
            if tick % _REDIS_TICKS == 0:
                await self._ask_redis()
            if tick % _STORAGE_TICKS == 0 and (self._probe is None or self._probe.done()):
                self._probe = asyncio.create_task(self._ask_storage(), name="vitals-storage")
            due = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._metrics.lagged(max(0.0, time.perf_counter() - due))
            tick += 1

    async def _ask_redis(self) -> None:
        began_s = time.perf_counter()
        try:
            await self._store.ping()
        except (Unavailable, Overloaded):
            # The refusals of those who call say so already.
            return
        self._metrics.redis_answered(time.perf_counter() - began_s)

    async def _ask_storage(self) -> None:
        began_s = time.perf_counter()
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._storage.ping)
        except Unavailable as err:
            log.info("storage_probe_failed", reason=err.code)
            return
        self._metrics.storage_answered(time.perf_counter() - began_s)
