"""Clocks that stand still until a test moves them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Seconds, as `time.monotonic`."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class QueueClock:
    """Milliseconds since 1970, in place of Redis' clock; a slot of any counter begins."""

    now_ms: int = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms

    def seconds(self) -> float:
        """Return the same moment for what counts in seconds."""
        return self.now_ms / 1000
