"""Examples of `openapi.yaml` about webhooks, made of the real resources."""

from __future__ import annotations

from pydantic import BaseModel

from service.api import webhook_resources as shown
from service.api.documentation import EXAMPLE_ID
from service.jobs.deliveries import DeliveryAttempt, Endpoint, LoggedEvent
from service.tenants.webhook_secrets import WebhookSecret

_AT_MS = 1_795_172_402_310

_ENDPOINT = shown.endpoint_resource(
    Endpoint(
        id=shown.EXAMPLE_ENDPOINT,
        url="https://shop.example/hooks/pictures",
        created_ms=_AT_MS - 86_400_000,
        enabled=True,
        disabled_ms=None,
        disabled_reason=None,
        failing_since_ms=_AT_MS,
        last_success_ms=_AT_MS - 3_600_000,
    )
)
_DELIVERY = shown.delivery_resource(
    LoggedEvent(
        id=shown.EXAMPLE_EVENT,
        job_id=EXAMPLE_ID,
        endpoint_id=shown.EXAMPLE_ENDPOINT,
        type="generation.succeeded",
        state="pending",
        created_ms=_AT_MS,
        next_ms=_AT_MS + 305_000,
        attempts=(
            DeliveryAttempt(at_ms=_AT_MS, status=503, duration_ms=182),
            DeliveryAttempt(at_ms=_AT_MS + 5_000, reason="timeout", duration_ms=15_000),
        ),
    )
)
_SECRET = WebhookSecret("whs_5d1c0a8e7f3b2946", bytes(range(32)), _AT_MS)
_EARLIER = WebhookSecret("whs_90b7e4d21c6fa358", bytes(32), _AT_MS - 86_400_000, _AT_MS + 86_400_000)

WEBHOOK_EXAMPLES: tuple[BaseModel, ...] = (
    _ENDPOINT,
    shown.EndpointPage(data=[_ENDPOINT], next_cursor=None),
    _DELIVERY,
    shown.DeliveryPageResource(data=[_DELIVERY], next_cursor=None),
    shown.secret_text(_SECRET),
    shown.WebhookSecretList(data=[shown.secret_resource(each) for each in (_SECRET, _EARLIER)]),
)
