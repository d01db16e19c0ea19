"""What a gateway counts. Labels are routes, codes and pools: never tenants, ids or anything that a caller chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.telemetry import metric_names

#: s; a poll takes one round trip to Redis, an upload of a picture some tenths.
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_ROUND_TRIP_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

#: Requests that no route of ours takes: their path, and perhaps their method, are whatever somebody sent.
UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: Name, help, and how to read it now; None = nothing is known.
_Gauge = tuple[str, str, Callable[[], float | None]]


class GatewayMetrics:
    """Counts from the event loop, and is read from a thread of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(metric_names.REQUESTS, "Requests", "method", "route", "status")
        self._request_s = self._histogram(
            metric_names.REQUEST_SECONDS, "Time of requests, without waiting for jobs, s", _REQUEST_S, "method", "route"
        )
        self._refusals = self._counter(metric_names.REFUSALS, "Requests refused, by code", "route", "code")
        self._accepted = self._counter(metric_names.ACCEPTED, "Generations accepted", "priority")
        self._redis_s = self._histogram(metric_names.REDIS_SECONDS, "Probes of Redis, s", _ROUND_TRIP_S)
        self._storage_s = self._histogram(metric_names.STORAGE_SECONDS, "Probes of the bucket, s", _ROUND_TRIP_S)
        self._lag_s = self._histogram(metric_names.LOOP_LAG_SECONDS, "Lateness of the event loop, s", _LAG_S)
        self._taken_back = self._counter(metric_names.LEASES_TAKEN_BACK, "Leases that ran out and were taken back")
        self._expired = self._counter(metric_names.DEADLINES_PASSED, "Generations ended by their deadline")
        self._bells = self._counter(metric_names.BELLS_RUNG, "Bells rung for jobs that wait without one")
        #: Looked up once per method, route and class of status: `labels` costs more than counting.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def requested(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request that was answered, and its time without what was waited for a generation."""
        found = self._children.get((method, route or UNMATCHED, status // 100))
        if found is None:
            found = self._child(method, route or UNMATCHED, status // 100)
        found[0].inc()
        found[1].observe(seconds)

    def refused(self, route: str | None, code: str) -> None:
        """Count a request that was answered with a problem of this code."""
        self._refusals.labels(route or UNMATCHED, code).inc()

    def accepted(self, priority: str) -> None:
        """Count a generation that was accepted, and not before under the same Idempotency-Key."""
        self._accepted.labels(priority).inc()

    def reaped(self, *, leases: int, deadlines: int, bells: int) -> None:
        """Count what a pass of the reaper did."""
        self._taken_back.inc(leases)
        self._expired.inc(deadlines)
        self._bells.inc(bells)

    def redis_answered(self, seconds: float) -> None:
        """Note how long Redis took to answer, as the event loop sees it."""
        self._redis_s.observe(seconds)

    def storage_answered(self, seconds: float) -> None:
        """Note how long the bucket took to answer."""
        self._storage_s.observe(seconds)

    def lagged(self, seconds: float) -> None:
        """Note how late the event loop came to something."""
        self._lag_s.observe(seconds)

    def watch(self, *collectors: Collector) -> None:
        """Show also what these find when they are asked."""
        for each in collectors:
            self.registry.register(each)

    def _child(self, method: str, route: str, status_class: int) -> tuple[Counter, Histogram]:
        known = method if method in _METHODS else "other"
        child = (self._requests.labels(known, route, f"{status_class}xx"), self._request_s.labels(known, route))
        if known == method:
            self._children[method, route, status_class] = child
        return child

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


class Gauges(Collector):
    """Values that are there already, read when they are asked for; what is not known makes no sample."""

    def __init__(self, *gauges: _Gauge) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """Yield what is known now."""
        for name, text, read in self._gauges:
            value = read()
            if value is not None:
                yield GaugeMetricFamily(name, text, value)
