"""Events that callers can be told of, and their ids."""

from __future__ import annotations

from typing import Literal

EventType = Literal[
    "generation.started",
    "generation.progress",
    "generation.succeeded",
    "generation.failed",
    "generation.canceled",
    "generation.expired",
]

#: Which events of a generation a caller may ask for; `completed` is its end, however it ended.
WebhookEvent = Literal["started", "progress", "completed"]

#: pending: to be sent, or sent again; superseded: the generation ended before it was sent.
EventState = Literal["pending", "delivered", "failed", "superseded"]


def event_id(job_id: str, event_type: str) -> str:
    """Return the id of an event: the same for every delivery attempt and every execution that tells it."""
    return f"evt_{job_id}_{event_type.removeprefix('generation.')}"
