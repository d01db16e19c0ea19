"""When leases may be taken back: not before Redis has been up, and seen by us, for one whole lease.

After an outage, a pause of this machine or a leap of Redis' clock every lease looks expired although its agent lives
and will renew as soon as it can.
"""

from __future__ import annotations

from service.jobs.store import LEASE_MS

#: s between two looks, made every second, from which on this process or Redis counts as having been away.
_GAP_S = 5.0
#: s by which Redis' clock may differ over one such look; it is told in whole seconds.
_LEAP_S = 2.5


class Patience:
    """Decides from each contact with Redis whether this process may take leases back. Times in seconds, monotonic."""

    def __init__(self) -> None:
        self._contact_since_s: float | None = None
        self._last_look_s: tuple[float, float] | None = None

    def lost(self) -> None:
        """Note that Redis did not answer."""
        self._contact_since_s = self._last_look_s = None

    def may_take_back(self, *, now_s: float, uptime_s: float) -> bool:
        """Note an answer of a server that is up for `uptime_s`; return whether one whole lease has been seen."""
        if self._contact_since_s is None or self._was_away(now_s, uptime_s):
            self._contact_since_s = now_s
        self._last_look_s = now_s, uptime_s
        lease_s = LEASE_MS / 1000
        return uptime_s > lease_s and now_s - self._contact_since_s >= lease_s

    def _was_away(self, now_s: float, uptime_s: float) -> bool:
        if self._last_look_s is None:
            return False
        ours_s, theirs_s = now_s - self._last_look_s[0], uptime_s - self._last_look_s[1]
        return ours_s > _GAP_S or abs(theirs_s - ours_s) > _LEAP_S
