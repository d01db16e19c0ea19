"""The sender process: `python -m service.webhooks`. Sends events until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from service.jobs.connection import connect_async
from service.jobs.outbox import WebhookOutbox
from service.net.egress import Egress, EgressRules
from service.settings.reading import SettingsError
from service.settings.sender import DeliverySettings, SenderSettings
from service.telemetry.exposition import MetricsPortTaken, expose
from service.telemetry.logs import configure_logging
from service.telemetry.sender_metrics import SenderMetrics
from service.telemetry.tracers import TracingUnavailable, open_tracer
from service.telemetry.tracing import NO_TRACER, Tracer
from service.tenants.sealing import Sealer
from service.tenants.webhook_secrets import WebhookSecrets
from service.webhooks.delivery import Delivery
from service.webhooks.lag import OutboxLag
from service.webhooks.sender import Sender, SenderRules

log = structlog.get_logger("service.webhooks")


async def send(
    settings: SenderSettings,
    stopping: asyncio.Event,
    *,
    metrics: SenderMetrics | None = None,
    tracer: Tracer = NO_TRACER,
) -> None:
    """Send until `stopping` is set. `metrics`: None = nothing is counted."""
    egress = Egress(EgressRules.of(settings.egress))
    try:
        async with connect_async(settings.redis) as client:
            delivery = Delivery(
                post=egress.post,
                secrets=WebhookSecrets(client, Sealer(settings.webhooks.keys)),
                timeout_s=settings.delivery.timeout_s,
            )
            outbox = WebhookOutbox(client)
            sender = Sender(
                outbox=outbox, delivery=delivery, rules=_rules(settings.delivery), metrics=metrics, tracer=tracer
            )
            log.info("sender_started", concurrency=settings.delivery.concurrency)
            async with _lag_shown(metrics, outbox):
                await sender.run(stopping)
            log.info("sender_stopped")
    finally:
        await egress.aclose()


@asynccontextmanager
async def _lag_shown(metrics: SenderMetrics | None, outbox: WebhookOutbox) -> AsyncIterator[None]:
    """Have metrics show how far the sending lies behind, until the block ends."""
    if metrics is None:
        yield
        return
    lag = OutboxLag(outbox)
    metrics.watch(lag)
    looks = asyncio.create_task(lag.run(), name="lag")
    try:
        yield
    finally:
        # Once is not enough: a connection that is just being made may swallow a cancellation.
        while not looks.done():
            looks.cancel()
            await asyncio.wait({looks}, timeout=0.1)


def _rules(delivery: DeliverySettings) -> SenderRules:
    return SenderRules(
        concurrency=delivery.concurrency,
        per_endpoint=delivery.endpoint_limit,
        per_tenant=delivery.tenant_limit,
        timeout_s=delivery.timeout_s,
        poll_s=delivery.poll_s,
    )


async def _until_told(settings: SenderSettings, metrics: SenderMetrics | None, tracer: Tracer) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopping.set)
    await send(settings, stopping, metrics=metrics, tracer=tracer)


def main() -> None:
    """Run; a wrong setting ends the process with one line."""
    try:
        settings = SenderSettings.from_environment()
        metrics = SenderMetrics() if settings.metrics.port else None
        if metrics is not None:
            expose(metrics.registry, settings.metrics.host, settings.metrics.port)
        tracer = open_tracer(settings.tracing.collector, "darkroom-sender")
    except (SettingsError, MetricsPortTaken, TracingUnavailable) as err:
        sys.exit(f"darkroom sender: {err}")
    configure_logging(settings.log.log, settings.log.log_level)
    asyncio.run(_until_told(settings, metrics, tracer))
    tracer.close()


if __name__ == "__main__":
    main()
