"""The rate at which a tenant may create generations, and what is left of it."""

from __future__ import annotations

from dataclasses import dataclass

#: s; what a rate is counted by.
RATE_WINDOW_S = 60
#: Calls in a window; more than one Redis accepts in that time would be no limit.
MAX_RATE = 60_000
#: How many parts a window's calls have, one of which may come at once.
RATE_PARTS = 4


@dataclass(frozen=True, slots=True)
class RequestRate:
    """A tenant's rate as the queue saw it when it answered."""

    #: Calls in `RATE_WINDOW_S` that it may make in the long run.
    per_minute: int
    #: Calls that would be accepted at once.
    remaining: int
    #: s, rounded up, until one more would be; 0 where nothing is used.
    next_s: int

    @property
    def burst(self) -> int:
        """Calls that would be accepted at once of whoever made none lately."""
        return -(-self.per_minute // RATE_PARTS)

    def wait_s(self, calls: int) -> int:
        """Return the seconds, rounded up, until so many calls would be accepted at once."""
        more = calls - self.remaining
        return 0 if more < 1 else self.next_s + -(-(more - 1) * RATE_WINDOW_S // self.per_minute)
