"""What a worker counts, for Prometheus, on a port of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.contract.engine import Measured, ModelCold, ModelLoaded
from service.contract.generation import Timings
from service.jobs.commands import Reaped
from service.telemetry import metric_names
from worker.agent.child import EngineChild
from worker.agent.models import ModelWord

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_LOAD_S = (0.25, 1, 2.5, 5, 10, 25, 60, 150, 600, 1800)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)

#: Phases of `Timings`: all but the wait in the queue and the sum.
PHASES = tuple(sorted({name.removesuffix("_s") for name in Timings.model_fields} - {"queued", "gpu"}))


class AgentMetrics:
    """Counts from any thread; serves what it has counted."""

    def __init__(self, models: Iterable[str]) -> None:
        """`models`: those of the catalogue; no other is counted, so that the number of series is bounded."""
        self._models = frozenset(models)
        self.registry = CollectorRegistry()
        of_call = ("model", "kind")
        self._calls = Counter(metric_names.ENGINE_CALLS, "Calls of the engine", of_call, registry=self.registry)
        self._rows = Histogram(
            metric_names.ENGINE_ROWS, "Rows of the engine's calls", of_call, buckets=_ROWS, registry=self.registry
        )
        self._call_s = Counter(
            metric_names.ENGINE_CALL_SECONDS, "The device's time for calls, s", of_call, registry=self.registry
        )
        self._phase_s = Histogram(
            metric_names.PHASE_SECONDS,
            "Where the time of succeeded generations went, s",
            ("phase",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._executions = Counter(
            metric_names.EXECUTIONS, "Executions that ended", ("model", "outcome"), registry=self.registry
        )
        self._images = self._counter(metric_names.IMAGES, "Pictures that were stored", "model")
        self._gpu_s = self._counter(metric_names.GPU_SECONDS, "The device's time for succeeded generations, s", "model")
        self._loads = self._counter(metric_names.MODEL_LOADS, "Models that were read into memory", "model")
        self._load_s = Histogram(
            metric_names.MODEL_LOAD_SECONDS, "Time to read a model, s", buckets=_LOAD_S, registry=self.registry
        )
        self._evictions = self._counter(metric_names.MODEL_EVICTIONS, "Models that left memory for another", "model")
        self._taken_back = self._counter(metric_names.LEASES_TAKEN_BACK, "Leases that ran out and were taken back")
        self._expired = self._counter(metric_names.DEADLINES_PASSED, "Generations ended by their deadline")
        self._bells = self._counter(metric_names.BELLS_RUNG, "Bells rung for jobs that wait without one")

    def watch(self, engine: EngineChild) -> None:
        """Show how the engine is, as it is when it is asked for."""
        self.registry.register(_EngineCollector(engine))

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
                self._gpu_s.labels(model).inc(timings.gpu_s)
        if timings is not None:
            for phase in PHASES:
                self._phase_s.labels(phase).observe(getattr(timings, f"{phase}_s"))

    def heard_of_model(self, word: ModelWord, *, was_warm: bool) -> None:
        """Count what became of a model in memory."""
        match word:
            case ModelLoaded() if word.card.id in self._models:
                self._loads.labels(word.card.id).inc()
                self._load_s.observe(word.seconds)
            case ModelCold() if was_warm and word.card.id in self._models:
                self._evictions.labels(word.card.id).inc()
            case _:
                pass

    def reaped(self, done: Reaped) -> None:
        """Count what a pass of the reaper did."""
        self._taken_back.inc(done.leases)
        self._expired.inc(done.deadlines)
        self._bells.inc(done.bells)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


class _EngineCollector(Collector):
    def __init__(self, engine: EngineChild) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        restarts = max(0, self._engine.starts - 1)
        yield CounterMetricFamily(metric_names.ENGINE_RESTARTS, "Engines that took the place of another", restarts)
        warm = len(self._engine.models.warm)
        yield GaugeMetricFamily(metric_names.MODELS_WARM, "Models in memory", warm)
