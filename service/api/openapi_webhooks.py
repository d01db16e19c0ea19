"""The `webhooks` part of the contract: what a receiver gets, and how it answers."""

from __future__ import annotations

from typing import Any, get_args

from service.api.webhook_resources import EXAMPLE_EVENT
from service.contract.events import EventType
from service.generations.webhook_message import WebhookMessage

_SUMMARIES: dict[EventType, str] = {
    "generation.started": "A worker draws it",
    "generation.progress": "It is further than before",
    "generation.succeeded": "Its pictures can be fetched",
    "generation.failed": "It ended without a picture",
    "generation.canceled": "It was canceled",
    "generation.expired": "Its deadline passed",
}

_DESCRIPTION = (
    "Sent with POST to the URL that the generation named. Standard Webhooks 1.0.0: verify the signature over id, "
    "timestamp and body before anything else; the same `webhook-id` may come again."
)

_PARAMETERS: dict[str, Any] = {
    "WebhookId": {
        "name": "webhook-id",
        "in": "header",
        "required": True,
        "description": "The id of the event, the same for every attempt: whoever has seen it may ignore it.",
        "schema": {"type": "string"},
        "example": EXAMPLE_EVENT,
    },
    "WebhookTimestamp": {
        "name": "webhook-timestamp",
        "in": "header",
        "required": True,
        "description": "The moment of this attempt, s since 1970. Refuse what is minutes old: somebody may repeat it.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
        "example": "1795186800",
    },
    "WebhookSignature": {
        "name": "webhook-signature",
        "in": "header",
        "required": True,
        "description": (
            "`v1,` and base64 of HMAC-SHA256 over `<webhook-id>.<webhook-timestamp>.<body>`, keyed with what is base64 "
            "in the secret behind `whsec_`; after a rotation several, separated by spaces, of which one has to match."
        ),
        "schema": {"type": "string", "pattern": "^v1,[A-Za-z0-9+/]+=*( v1,[A-Za-z0-9+/]+=*)*$"},
        "example": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    },
}

_RESPONSES: dict[str, Any] = {
    "WebhookTaken": {"description": "Taken. The body of the reply is not read."},
    "WebhookUnwanted": {"description": "Nothing more is wanted at this URL: the endpoint is switched off."},
    "WebhookNotTaken": {
        "description": (
            "Not taken: it is sent again by the schedule (a redirect is not followed). After 429, 502 and 504 other "
            "events wait too; `Retry-After` is honoured."
        )
    },
}


#: What `webhooks` refers to.
COMPONENTS: dict[str, dict[str, Any]] = {"parameters": _PARAMETERS, "responses": _RESPONSES}


def webhooks() -> dict[str, Any]:
    """Return what is sent, by type of event."""
    return {event_type: {"post": _operation(event_type)} for event_type in get_args(EventType)}


def _operation(event_type: EventType) -> dict[str, Any]:
    name = event_type.removeprefix("generation.")
    return {
        "operationId": f"onGeneration{name.title()}",
        "summary": _SUMMARIES[event_type],
        "description": _DESCRIPTION,
        "tags": ["webhooks"],
        "security": [],
        "parameters": [{"$ref": f"#/components/parameters/{each}"} for each in _PARAMETERS],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "allOf": [{"$ref": f"#/components/schemas/{WebhookMessage.__name__}"}],
                        "properties": {"type": {"const": event_type}},
                    }
                }
            },
        },
        "responses": {
            status: {"$ref": f"#/components/responses/{each}"}
            for status, each in zip(("2XX", "410", "default"), _RESPONSES, strict=True)
        },
    }
