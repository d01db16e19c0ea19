"""What a sender of webhooks counts. Labels are words of ours: never URLs, tenants or ids."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.registry import Collector

from service.telemetry import metric_names

#: s; retries go on for days.
_AGE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800, 7200, 36_000, 172_800)


class SenderMetrics:
    """Counts from the event loop, and is read from a thread of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._deliveries = Counter(
            metric_names.WEBHOOK_DELIVERIES, "Attempts to deliver an event", ("outcome",), registry=self.registry
        )
        self._age_s = Histogram(
            metric_names.WEBHOOK_AGE_SECONDS, "Age of events when delivered, s", buckets=_AGE_S, registry=self.registry
        )
        self._off = Counter(
            metric_names.WEBHOOK_ENDPOINTS_OFF, "Endpoints switched off", ("reason",), registry=self.registry
        )

    def attempted(self, outcome: str, *, age_s: float, switched_off: str | None) -> None:
        """Count an attempt, how old its event was, and why it switched its endpoint off; None = it did not."""
        self._deliveries.labels(outcome).inc()
        if outcome == "delivered":
            self._age_s.observe(max(0.0, age_s))
        if switched_off is not None:
            self._off.labels(switched_off).inc()

    def watch(self, collector: Collector) -> None:
        """Show also what this finds when it is asked."""
        self.registry.register(collector)
