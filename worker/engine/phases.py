"""Where an execution stands, and how long it stood there."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.contract.engine import Phase


class Phases:
    """The phase that an execution is in: told on every change, with the time spent in each added up."""

    def __init__(self, tell: Callable[[Phase], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._current: Phase | None = None
        self._since_s = 0.0
        self._spent_s: dict[Phase, float] = {}

    def enter(self, phase: Phase) -> None:
        """Leave the phase before and begin this one; nothing happens when it is the same."""
        if phase == self._current:
            return
        self.leave()
        self._current, self._since_s = phase, self._clock()
        self._tell(phase)

    def leave(self) -> None:
        """End the current phase without another."""
        if self._current is not None:
            self._spent_s[self._current] = self.spent_s(self._current) + self._clock() - self._since_s
            self._current = None

    def spent_s(self, phase: Phase) -> float:
        """Return the seconds spent in a phase that was left, over all its visits."""
        return self._spent_s.get(phase, 0.0)
