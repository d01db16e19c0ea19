"""How soon a place in a full queue becomes free, by how many jobs ended lately. Pure."""

from __future__ import annotations

import math

from service.jobs.commands import Ended
from service.jobs.scripts import LIMITS

#: s; no caller is told to come back later than that.
LONGEST_S = 600

#: Ends that are enough to know how fast a queue drains; what lies before them says nothing of the present.
_ENOUGH = 20


def seconds_to_a_place(ended: Ended) -> int | None:
    """Return the seconds until one more job is expected to end, 1 to 600; None where none ended lately.

    The mean time between ends, over no longer than it takes to see enough of them. A queue that was idle before its
    first end is not held to be slow, and one of which nothing has ended for a while is expected to stay so as long
    again.
    """
    slot_ms = LIMITS["ended_slot_ms"]
    present_ms = ended.now_ms % slot_ms
    total = span_ms = silence_ms = 0
    for back, count in enumerate(ended.by_slot):
        if not count:
            continue
        if not total and back:
            # It ended in that slot: at the end of it, for all we know.
            silence_ms = present_ms + (back - 1) * slot_ms
        total += count
        # A slot that has just begun would make one end look like many a second.
        span_ms = max(present_ms + back * slot_ms, slot_ms)
        if total >= _ENOUGH:
            break
    if not total:
        return None
    return min(max(1, math.ceil(max(span_ms / total, silence_ms) / 1000)), LONGEST_S)
