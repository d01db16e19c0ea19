"""How far the sending of webhooks lies behind, for its metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.contract.errors import Overloaded, Unavailable
from service.jobs.outbox import WebhookOutbox
from service.telemetry import metric_names

#: s between two looks.
_LOOK_S = 1.0


class OutboxLag(Collector):
    """What was found last. Where Redis does not answer there is no sample."""

    def __init__(self, outbox: WebhookOutbox) -> None:
        self._outbox = outbox
        self._lag_s: float | None = None

    async def look(self) -> None:
        """Look now."""
        try:
            self._lag_s = await self._outbox.lag_s()
        except (Unavailable, Overloaded):
            self._lag_s = None

    async def run(self) -> None:
        """Look again and again, until canceled."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_S)

    def collect(self) -> Iterator[Metric]:
        """Yield the lag, where it is known. Called on a thread of the metrics' server."""
        lag_s = self._lag_s
        if lag_s is not None:
            yield GaugeMetricFamily(metric_names.WEBHOOK_LAG_SECONDS, "What is due has been due for, s", lag_s)
