"""The agent: `python -m worker.agent`. Serves one pool with one engine child until it is told to stop."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import structlog

from service.contract.engine import Measured
from service.jobs.connection import connect
from service.jobs.queue import answer_bells
from service.jobs.store import JobStore
from service.settings.reading import SettingsError
from service.settings.worker import WorkerSettings
from service.storage.s3 import ObjectStorage
from service.telemetry.exposition import MetricsPortTaken, expose
from service.telemetry.logs import configure_logging
from service.telemetry.tracers import TracingUnavailable, open_tracer
from worker.agent.beat import Beat
from worker.agent.catalog import CatalogError, packaged_catalog, read_catalog
from worker.agent.child import EngineChild
from worker.agent.costs import CostKeeper
from worker.agent.inputs import Decoders
from worker.agent.metrics import AgentMetrics
from worker.agent.previews import Previews
from worker.agent.slots import Slots
from worker.agent.tools import Tools
from worker.agent.watch import PhaseClock

log = structlog.get_logger("worker.agent")

#: s that one bell waits for room; far below RQ's limit on a bell (`service.jobs.queue.BELL_TIMEOUT_S`).
_ROOM_WAIT_S = 60.0
#: Children that may end at the start without ever having held a model.
_STARTS = 5
#: s between two looks at the stop flag outside RQ's own loop.
_GLANCE_S = 0.2
#: s after the grace period for handing back and saying good-bye; with the default grace below Kubernetes' 30 s.
_GOODBYE_S = 4.0


class Agent:
    """The agent's parts, put together, and its life from start to drain."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        agent = settings.agent
        path = agent.models or packaged_catalog()
        entries = [entry for entry in read_catalog(path) if entry.pool == agent.pool]
        if not entries:
            msg = f"{path}: names no model of the pool {agent.pool!r}"
            raise CatalogError(msg)
        self._tracer = open_tracer(settings.tracing.collector, "darkroom-worker")
        self._redis = connect(settings.redis)
        store = JobStore(self._redis)
        storage = ObjectStorage(settings.storage)
        costs = CostKeeper(store)
        self._metrics = AgentMetrics(entry.id for entry in entries)
        self._engine = EngineChild(
            agent,
            settings.log,
            entries,
            on_change=self._engine_changed,
            on_measured=self._measured_by(costs),
            on_model=lambda word, was_warm: self._metrics.heard_of_model(word, was_warm=was_warm),
        )
        self._decoders = Decoders()
        self._previews = Previews(store, every_s=agent.preview_s)
        tools = Tools(
            store=store,
            storage=storage,
            engine=self._engine,
            decoders=self._decoders,
            clock=PhaseClock(patience_s=agent.patience_s, load_s=agent.load_s),
            metrics=self._metrics,
            previews=self._previews,
            tracer=self._tracer,
        )
        self.slots = Slots(f"agent_{secrets.token_hex(6)}", agent.pool, tools)
        self._beat = Beat(
            pool=agent.pool,
            slots=self.slots,
            engine=self._engine,
            store=store,
            storage=storage,
            redis=self._redis,
            costs=costs,
            metrics=self._metrics,
        )

    def expose_metrics(self) -> None:
        """Let Prometheus read what is counted, where the settings say so. Raises `MetricsPortTaken`."""
        self._metrics.watch(self._engine)
        metrics = self._settings.metrics
        if metrics.port:
            expose(self._metrics.registry, metrics.host, metrics.port)

    def run(self) -> int:
        """Serve until told to stop; return the process' exit code."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        log.info("agent_started", agent_id=self.slots.agent_id, pool=self._settings.agent.pool)
        threading.Thread(target=self._leave_in_time, name="last-call", daemon=True).start()
        self._engine.start()
        self._previews.start()
        self._beat.start()
        failed = not self._wait_for_engine()
        if not failed:
            self._answer_bells()
        self._drain()
        return 1 if failed else 0

    def _wait_for_engine(self) -> bool:
        """Wait for the first models; False where none can be loaded."""
        while not (self._engine.has_served or self.slots.stopping):
            models = self._engine.models
            if models.settled and not models.cards:
                log.error("no_model_loaded", models=sorted(models.failures))
                return False
            if self._engine.starts > _STARTS:
                log.error("engine_never_ready", starts=self._engine.starts - 1)
                return False
            time.sleep(_GLANCE_S)
        return True

    def _answer_bells(self) -> None:
        connection = connect(self._settings.redis, decode_responses=False)
        answer_bells(
            connection,
            self._settings.agent.pool,
            ring=lambda: self.slots.serve_bell(_ROOM_WAIT_S),
            stopping=lambda: self.slots.stopping,
            stop=self._stop_claiming,
        )

    def _drain(self) -> None:
        signal.signal(signal.SIGTERM, self._hurry)
        signal.signal(signal.SIGINT, self._hurry)
        self.slots.drain(self._settings.agent.drain_s)
        self._engine.stop()
        self._decoders.close()
        self._previews.stop()
        self._beat.stop()
        self._tracer.close()
        log.info("agent_stopped", agent_id=self.slots.agent_id)

    def _leave_in_time(self) -> None:
        """End the process when its time is up, whatever still waits for a Redis that hangs: leases run out."""
        while not self.slots.stopping:
            time.sleep(_GLANCE_S)
        time.sleep(self._settings.agent.drain_s + _GOODBYE_S)
        log.error("agent_left_without_goodbye", agent_id=self.slots.agent_id)
        os._exit(1)

    def _measured_by(self, costs: CostKeeper) -> Callable[[Measured], None]:
        def hear(message: Measured) -> None:
            costs.hear(message)
            self._metrics.measured(message)

        return hear

    def _engine_changed(self) -> None:
        self.slots.engine_changed()

    def _stop_claiming(self) -> None:
        self.slots.stopping = True

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.slots.stopping = True

    def _hurry(self, _signal: int, _frame: FrameType | None) -> None:
        """A second signal while draining: leave; leases run out and jobs are taken back."""
        raise SystemExit(1)


def main() -> None:
    """Read the settings and run; what is wrong with them is one line."""
    try:
        settings = WorkerSettings.from_environment()
        configure_logging(settings.log.log, settings.log.log_level)
        agent = Agent(settings)
        agent.expose_metrics()
    except (SettingsError, MetricsPortTaken, TracingUnavailable, CatalogError) as err:
        sys.exit(f"darkroom worker: {err}")
    # Threads that wait for Redis or S3 must not keep a drained process alive.
    code = agent.run()
    sys.stderr.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
