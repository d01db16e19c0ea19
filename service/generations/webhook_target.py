"""Where the events of a generation go."""

from __future__ import annotations

from typing import Any

from service.contract.errors import FieldError, InvalidRequest, LimitReached
from service.generations.request import WebhookRequest
from service.generations.specification import Draft
from service.jobs.scripts import LIMITS
from service.tenants.records import DefaultWebhook

#: s after which a tenant with too many endpoints may ask again: they become unused by the day.
_RETRY_S = 3600


def webhook_fields(drafted: Draft, default: DefaultWebhook | None) -> dict[str, Any]:
    """Return the fields of the job that say where its events go; none where nobody wants any.

    `default` is that of the caller's key. Raises `InvalidRequest` where events are wanted, and nobody says where.
    """
    asked = drafted.request.webhook or WebhookRequest()
    url, events = asked.url, asked.events
    if url is None and default:
        url, events = default.url, default.events if events is None else events
    elif url is None and drafted.request.webhook and events != []:
        message = "is required, as this key has no default endpoint"
        raise InvalidRequest([FieldError(f"{drafted.where}/webhook/url", message)])
    told = tuple(dict.fromkeys(["completed"] if events is None else events))
    return {"webhook_url": url, "webhook_events": told} if url and told else {}


def too_many_endpoints() -> LimitReached:
    """Return what a new URL is refused with where the tenant has used too many."""
    days = LIMITS["endpoint_idle_ms"] // 86_400_000
    message = (
        f"This tenant has {LIMITS['endpoints']} webhook endpoints, as many as it may: use one of these URLs. "
        f"Those that no generation named for {days} days make room."
    )
    return LimitReached(message, retry_after_s=_RETRY_S)
