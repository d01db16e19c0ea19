"""How long each phase of a picture may go without a sign. Pure.

No timeout interrupts a hung kernel, so the agent watches from outside: a phase that takes 20 times its own measure (and
at least 30 s) is taken for hung. What was never measured gets the operator's patience. A
load has a limit of its own, never a measured one: it comes from the page cache, a disk or the network, or is a
compilation, and one says nothing of the next.
"""

from __future__ import annotations

_FACTOR = 20.0
_FLOOR_S = 30.0
#: Weight of the newest measurement in the moving average.
_WEIGHT = 0.2
#: The part of it that the shortest one still has.
_LEAST = 0.05


class PhaseClock:
    """Learns how long the signs of each (model, phase, work) are apart. Times in seconds, monotonic."""

    def __init__(self, *, patience_s: float, load_s: float) -> None:
        """`load_s`: how long the phase `load` may stay silent, whatever was seen of it."""
        self._patience_s = patience_s
        self._load_s = load_s
        self._average_s: dict[tuple[str, str, int], float] = {}

    def limit_s(self, model: str, phase: str, pixels: int) -> float:
        """Return how long this phase may stay silent."""
        if phase == "load":
            return max(self._load_s, self._patience_s)
        average_s = self._average_s.get((model, phase, pixels))
        return self._patience_s if average_s is None else max(_FLOOR_S, _FACTOR * average_s)

    def measured(self, model: str, phase: str, pixels: int, seconds: float) -> None:
        """Note how long one sign of this phase took.

        One that follows at once says little of the next silence: images that share their calls tell their steps in one
        go. So what is shorter than the average weighs less, by as much as it is shorter; but never nothing, or a long
        first one (a compilation) would be remembered for ever.
        """
        key = (model, phase, pixels)
        average_s = self._average_s.get(key, seconds)
        weight = _WEIGHT * min(1.0, max(_LEAST, seconds / average_s)) if average_s > 0 else _WEIGHT
        self._average_s[key] = average_s + weight * (seconds - average_s)
