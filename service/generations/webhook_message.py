"""The body of a webhook: what happened, and the generation as it is when it is sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.contract.events import EventType
from service.contract.job import Job
from service.generations.resource import GenerationResource, generation_resource


class WebhookMessage(BaseModel):
    """What a receiver gets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: EventType
    timestamp: Annotated[
        datetime, Field(description="When it happened; `webhook-timestamp` is the moment of this attempt to tell it.")
    ]
    data: Annotated[
        GenerationResource,
        Field(
            description="The generation as it is at the moment of this attempt, as `GET /v1/generations/{id}` has it."
        ),
    ]


def webhook_message(job: Job, event_type: EventType, happened_ms: int) -> WebhookMessage:
    """Return the message of an event of `job`; `happened_ms` is in ms since 1970."""
    happened = datetime.fromtimestamp(happened_ms / 1000, tz=UTC)
    return WebhookMessage(type=event_type, timestamp=happened, data=generation_resource(job))
