"""The function that RQ calls: "there is work in this pool", no more. See docs/decisions/0002."""

from __future__ import annotations

from typing import Final

from worker.agent.slots import Slots

#: s that one bell waits for room; far below RQ's limit on a job (`service.jobs.queue.BELL_TIMEOUT_S`).
ROOM_WAIT_S: Final = 60.0

_installed: list[Slots] = []


def install(slots: Slots) -> None:
    """Say whom bells ring for: RQ calls by name, so the process has one."""
    _installed[:] = [slots]


def ring() -> None:
    """Claim what there is room for."""
    for slots in _installed:
        slots.serve_bell(ROOM_WAIT_S)
