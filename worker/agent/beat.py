"""The agent's regular duties, each on a thread of its own: leases, orders, presence, reaping, erasing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import structlog
from redis import Redis
from redis.exceptions import RedisError

from service.contract.worker import WorkerRecord
from service.jobs.keys import key
from service.jobs.reaper import Patience
from service.jobs.store import JobStore
from service.storage.errors import StorageError
from service.storage.s3 import ObjectStorage
from worker.agent.child import EngineChild
from worker.agent.costs import CostKeeper
from worker.agent.metrics import AgentMetrics
from worker.agent.slots import Slots

log = structlog.get_logger(__name__)

#: s between two looks at progress: at most 4 writes a second.
_LOOK_S = 0.25
#: s between two renewals where nothing changed: a lease of 15 s survives four lost ones.
_RENEW_S = 3.0
#: s between two announcements, and ms until a silent agent counts as gone.
_ANNOUNCE_S, _PRESENCE_MS = 3.0, 12_000
#: s between two looks at what the engine measured, and whether it is new.
_COSTS_S = 0.5
#: s between two reaper passes; every agent and gateway makes them, a little apart.
_REAP_S = 1.0
#: s to wait after Redis did not answer.
_PAUSE_S = 0.5


class Beat:
    """Runs the duties from `start` to `stop`. Redis being away is logged once and waited for."""

    def __init__(
        self,
        *,
        pool: str,
        slots: Slots,
        engine: EngineChild,
        store: JobStore,
        storage: ObjectStorage,
        redis: Redis,
        costs: CostKeeper,
        metrics: AgentMetrics,
    ):
        self._pool = pool
        self._slots = slots
        self._engine = engine
        self._store = store
        self._storage = storage
        self._redis = redis
        self._costs = costs
        self._metrics = metrics
        self._stopped = threading.Event()
        self._started_ms = round(time.time() * 1000)
        duties: dict[str, Callable[[], None]] = {
            "leases": self._keep_leases,
            "orders": self._follow_orders,
            "presence": self._announce,
            "reaper": self._reap,
            "eraser": self._erase,
            "costs": self._keep_costs,
        }
        self._threads = [
            threading.Thread(target=self._forever, args=(name, duty), name=name, daemon=True)
            for name, duty in duties.items()
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; leases that are still held are no longer renewed."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(2)
        try:
            self._store.withdraw(self._slots.agent_id)
            self._costs.keep(self._engine)
        except RedisError:
            log.info("withdraw_failed")

    def _forever(self, name: str, duty: Callable[[], None]) -> None:
        away = False
        while not self._stopped.is_set():
            try:
                duty()
                away = False
            except (RedisError, OSError, StorageError) as err:
                if not away:
                    log.warning("duty_interrupted", duty=name, error=type(err).__name__)
                away = True
                self._stopped.wait(_PAUSE_S)
            except Exception:
                # A duty must outlive its own defects: leases depend on it.
                log.exception("duty_failed", duty=name)
                self._stopped.wait(_PAUSE_S)

    def _keep_leases(self) -> None:
        """Renew every few seconds, and as soon as there is progress to show."""
        written, renewed_s = self._slots.holdings(), float("-inf")
        while not self._stopped.wait(_LOOK_S):
            holdings = self._slots.holdings()
            due = time.monotonic() - renewed_s >= _RENEW_S
            if holdings and (due or holdings != written):
                self._slots.renew(holdings)
                renewed_s = time.monotonic()
            written = holdings

    def _follow_orders(self) -> None:
        """Hear of cancels at once; a lost message costs one renewal."""
        with self._redis.pubsub(ignore_subscribe_messages=True) as orders:
            orders.subscribe(key("orders", self._slots.agent_id))
            while not self._stopped.is_set():
                message = orders.get_message(timeout=1.0)
                if message is not None:
                    order, _, execution_id = str(message["data"]).partition(" ")
                    if order == "cancel":
                        self._slots.stop_execution(execution_id, drop=False)

    def _announce(self) -> None:
        hello, models = self._engine.hello, self._engine.models
        record = WorkerRecord(
            agent_id=self._slots.agent_id,
            pool=self._pool,
            device=hello.device if hello else "",
            device_name=hello.device_name if hello else "",
            warm=models.warm,
            loading=models.loading,
            cold=models.cold,
            capacity=hello.capacity if hello else 0,
            started_ms=self._started_ms,
        )
        self._store.announce(record, models.cards, ttl_ms=_PRESENCE_MS)
        # What becomes of a model is shown at once.
        deadline_s, shown = time.monotonic() + _ANNOUNCE_S, (models.warm, models.loading)
        while time.monotonic() < deadline_s and (now := self._engine.models) and (now.warm, now.loading) == shown:
            if self._stopped.wait(0.1):
                return

    def _keep_costs(self) -> None:
        while not self._stopped.wait(_COSTS_S):
            self._costs.keep(self._engine)

    def _reap(self) -> None:
        patience = Patience()
        while not self._stopped.wait(_REAP_S * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads passes
            server = self._store.server()
            take_back = patience.may_take_back(now_s=time.monotonic(), uptime_s=server.uptime_s)
            done = self._store.reap(take_back=take_back)
            self._metrics.reaped(done)
            if done.leases or done.deadlines:
                log.info("reaped", leases=done.leases, deadlines=done.deadlines, bells=done.bells)

    def _erase(self) -> None:
        while not self._stopped.wait(_REAP_S):
            for prefix in self._store.due_erasures():
                try:
                    self._storage.delete_prefix(prefix)
                except ValueError:
                    # Somebody else wrote into our Redis; the others are still to be erased.
                    log.error("prefix_refused")
                self._store.forget(prefix)
