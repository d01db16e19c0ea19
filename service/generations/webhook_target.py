"""Where the events of a generation go."""

from __future__ import annotations

from typing import Any

from service.contract.errors import LimitReached
from service.generations.request import GenerationRequest
from service.jobs.scripts import LIMITS

#: s after which a tenant with too many endpoints may ask again: they become unused by the day.
_RETRY_S = 3600


def webhook_fields(request: GenerationRequest) -> dict[str, Any]:
    """Return the fields of the job that say where its events go; none where nobody wants any."""
    webhook = request.webhook
    if webhook is None:
        return {}
    return {"webhook_url": webhook.url, "webhook_events": tuple(dict.fromkeys(webhook.events or ["completed"]))}


def too_many_endpoints() -> LimitReached:
    """Return what a new URL is refused with where the tenant has used too many."""
    days = LIMITS["endpoint_idle_ms"] // 86_400_000
    message = (
        f"This tenant has {LIMITS['endpoints']} webhook endpoints, as many as it may: use one of these URLs. "
        f"Those that no generation named for {days} days make room."
    )
    return LimitReached(message, retry_after_s=_RETRY_S)
