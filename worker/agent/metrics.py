"""What a worker counts, for Prometheus, on a port of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.contract.engine import Measured
from service.contract.generation import Timings
from service.settings.reading import SettingsError
from service.telemetry import metric_names
from worker.agent.child import EngineChild

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)

#: Phases of `Timings`: all but the wait in the queue and the sum.
PHASES = tuple(sorted({name.removesuffix("_s") for name in Timings.model_fields} - {"queued", "gpu"}))


class AgentMetrics:
    """Counts from any thread; serves what it has counted."""

    def __init__(self, models: Iterable[str]) -> None:
        """`models`: those of the catalogue; no other is counted, so that the number of series is bounded."""
        self._models = frozenset(models)
        self._registry = CollectorRegistry()
        of_call = ("model", "kind")
        self._calls = Counter(metric_names.ENGINE_CALLS, "Calls of the engine", of_call, registry=self._registry)
        self._rows = Histogram(
            metric_names.ENGINE_ROWS, "Rows of the engine's calls", of_call, buckets=_ROWS, registry=self._registry
        )
        self._call_s = Counter(
            metric_names.ENGINE_CALL_SECONDS, "The device's time for calls, s", of_call, registry=self._registry
        )
        self._phase_s = Histogram(
            metric_names.PHASE_SECONDS,
            "Where the time of succeeded generations went, s",
            ("phase",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._executions = Counter(
            metric_names.EXECUTIONS, "Executions that ended", ("model", "outcome"), registry=self._registry
        )
        self._images = Counter(metric_names.IMAGES, "Pictures that were stored", ("model",), registry=self._registry)

    def watch(self, engine: EngineChild) -> None:
        """Show how the engine is, as it is when it is asked for."""
        self._registry.register(_EngineCollector(engine))

    def measured(self, message: Measured) -> None:
        """Count the calls that an engine reports."""
        for each in message.costs:
            label = each.cost.label
            if label.model in self._models:
                self._calls.labels(label.model, label.kind).inc(each.calls)
                self._call_s.labels(label.model, label.kind).inc(each.spent_s)
                rows = self._rows.labels(label.model, label.kind)
                for _ in range(each.calls):
                    rows.observe(each.cost.rows)

    def ended(self, model: str, outcome: str, *, images: int = 0, timings: Timings | None = None) -> None:
        """Count one execution, by how it ended."""
        if model in self._models:
            self._executions.labels(model, outcome).inc()
            self._images.labels(model).inc(images)
        if timings is not None:
            for phase in PHASES:
                self._phase_s.labels(phase).observe(getattr(timings, f"{phase}_s"))

    def serve(self, host: str, port: int) -> None:
        """Answer `GET /metrics` from now on. Raises `SettingsError` where the port cannot be had."""
        try:
            start_http_server(port, host, registry=self._registry)
        except OSError as err:
            msg = f"DARKROOM_METRICS_HOST, DARKROOM_METRICS_PORT: cannot listen on {host}:{port}: {err.strerror}"
            raise SettingsError(msg) from err


class _EngineCollector(Collector):
    def __init__(self, engine: EngineChild) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        restarts = max(0, self._engine.starts - 1)
        yield CounterMetricFamily(metric_names.ENGINE_RESTARTS, "Engines that took the place of another", restarts)
        warm = len(self._engine.models.warm)
        yield GaugeMetricFamily(metric_names.MODELS_WARM, "Models in memory", warm)
