"""What calls cost, between the engine that measures it and Redis, where it outlives this worker."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import structlog

from service.contract.costs import MAX_KEPT, CallCost, CallLabel
from service.contract.engine import Hello, Measured
from service.jobs.store import JobStore
from worker.agent.child import EngineChild

log = structlog.get_logger(__name__)


class CostKeeper:
    """Tells each new engine what is known of its kind of device, and keeps what it measures.

    `hear` may be called from any thread, `keep` from one at a time; only `keep` waits for Redis.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        #: Costs that are not in Redis yet. Bounded: while Redis is away the oldest are given up.
        self._unkept: dict[tuple[CallLabel, int], CallCost] = {}
        self._greeted: Hello | None = None

    def hear(self, message: Measured) -> None:
        """Take what the engine measured."""
        self._add(cost.cost for cost in message.costs)

    def keep(self, engine: EngineChild) -> None:
        """Write what was measured, and brief an engine that is new. Raises `RedisError`; may be repeated."""
        hello = engine.hello
        if hello is not None and hello is not self._greeted:
            if hello.device_name:
                costs = self._store.costs(hello.device_name)
                engine.remember(costs)
                log.info("costs_remembered", device=hello.device_name, costs=len(costs))
            self._greeted = hello
        if self._greeted is not None and self._greeted.device_name:
            self._write(self._greeted.device_name)

    def _write(self, device_name: str) -> None:
        with self._lock:
            taken, self._unkept = self._unkept, {}
        if not taken:
            return
        try:
            self._store.keep_costs(device_name, taken.values())
        except Exception:
            # What was measured meanwhile is newer.
            with self._lock:
                newer, self._unkept = self._unkept, taken
            self._add(newer.values())
            raise

    def _add(self, costs: Iterable[CallCost]) -> None:
        with self._lock:
            for cost in costs:
                self._unkept.pop((cost.label, cost.rows), None)
                self._unkept[cost.label, cost.rows] = cost
            for oldest in list(self._unkept)[: max(0, len(self._unkept) - MAX_KEPT)]:
                del self._unkept[oldest]
