"""The sender process: `python -m service.webhooks`. Sends events until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog

from service.jobs.connection import connect_async
from service.jobs.outbox import WebhookOutbox
from service.net.egress import Egress, EgressRules
from service.settings.reading import SettingsError
from service.settings.sender import DeliverySettings, SenderSettings
from service.telemetry.logs import configure_logging
from service.tenants.sealing import Sealer
from service.tenants.webhook_secrets import WebhookSecrets
from service.webhooks.delivery import Delivery
from service.webhooks.sender import Sender, SenderRules

log = structlog.get_logger("service.webhooks")


async def send(settings: SenderSettings, stopping: asyncio.Event) -> None:
    """Send until `stopping` is set."""
    egress = Egress(EgressRules.of(settings.egress))
    try:
        async with connect_async(settings.redis) as client:
            delivery = Delivery(
                post=egress.post,
                secrets=WebhookSecrets(client, Sealer(settings.webhooks.keys)),
                timeout_s=settings.delivery.timeout_s,
            )
            sender = Sender(outbox=WebhookOutbox(client), delivery=delivery, rules=_rules(settings.delivery))
            log.info("sender_started", concurrency=settings.delivery.concurrency)
            await sender.run(stopping)
            log.info("sender_stopped")
    finally:
        await egress.aclose()


def _rules(delivery: DeliverySettings) -> SenderRules:
    return SenderRules(
        concurrency=delivery.concurrency,
        per_endpoint=delivery.endpoint_limit,
        per_tenant=delivery.tenant_limit,
        timeout_s=delivery.timeout_s,
        poll_s=delivery.poll_s,
    )


async def _until_told(settings: SenderSettings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopping.set)
    await send(settings, stopping)


def main() -> None:
    """Run; a wrong setting ends the process with one line."""
    try:
        settings = SenderSettings.from_environment()
    except SettingsError as err:
        sys.exit(f"darkroom sender: {err}")
    configure_logging(settings.log.log, settings.log.log_level)
    asyncio.run(_until_told(settings))


if __name__ == "__main__":
    main()
