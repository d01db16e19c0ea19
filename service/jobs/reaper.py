"""When leases may be taken back: not before Redis has been up, and seen by us, for one whole lease.

After an outage every lease looks expired although its agent lives and will renew as soon as it can.
"""

from __future__ import annotations

from service.jobs.store import LEASE_MS


class Patience:
    """Decides from each contact with Redis whether this process may take leases back. Times in seconds, monotonic."""

    def __init__(self) -> None:
        self._contact_since_s: float | None = None

    def lost(self) -> None:
        """Note that Redis did not answer."""
        self._contact_since_s = None

    def may_take_back(self, *, now_s: float, uptime_s: float) -> bool:
        """Note an answer of a server that is up for `uptime_s`; return whether one whole lease has been seen."""
        if self._contact_since_s is None:
            self._contact_since_s = now_s
        lease_s = LEASE_MS / 1000
        return uptime_s > lease_s and now_s - self._contact_since_s >= lease_s
