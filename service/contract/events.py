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


def event_id(job_id: str, event_type: str) -> str:
    """Return the id of an event: the same for every delivery attempt and every execution that tells it."""
    return f"evt_{job_id}_{event_type.removeprefix('generation.')}"
