"""How often an address may come with a wrong key: each has a bucket that a failure takes from and time fills.

Constant cost and bounded memory, whoever comes: addresses beyond those remembered push out the ones that were quiet
longest. Kept in the process; each gateway counts for itself.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

#: s; a whole bucket of failures is forgotten after so long.
_WINDOW_S = 60.0
_REMEMBERED = 10_000

#: An IPv6 customer has a /64 at least, with an address for every attempt.
_IPV6_PREFIX = 64


class FailedAttempts:
    """The generic cell rate algorithm: kept is only until when an address' failures use its bucket up."""

    def __init__(self, *, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap_s = _WINDOW_S / per_minute
        self._clock = clock
        self._used_until: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._used_until)

    def wait_s(self, address: str | None) -> int:
        """Return how long this address has to wait for its next attempt, s, rounded up; 0 = it has some left."""
        used_until = self._used_until.get(address_group(address), 0.0)
        return max(0, math.ceil(used_until + self._gap_s - self._clock() - _WINDOW_S - 1e-6))

    def count(self, address: str | None) -> None:
        """Take one failure from the bucket of this address."""
        group, now = address_group(address), self._clock()
        self._used_until[group] = min(max(now, self._used_until.get(group, now)) + self._gap_s, now + _WINDOW_S)
        self._used_until.move_to_end(group)
        while len(self._used_until) > _REMEMBERED:
            self._used_until.popitem(last=False)


def address_group(address: str | None) -> str:
    """Return what counts as one client: an IPv4 address, the /64 of an IPv6 address.

    Whatever is no address is one client: that is a peer on a Unix socket, or what a trusted proxy made up.
    """
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
