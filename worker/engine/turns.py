"""Something that one strand may have at a time, in the order in which they come for it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Hashable, Iterator

import greenlet

from worker.engine.strands import Strand


@contextlib.contextmanager
def one_at_a_time(key: Hashable) -> Iterator[None]:
    """Wait until every strand that came before with this key has left the block.

    Who is stopped meanwhile has left, too. Outside of any strand there is nobody to wait for.
    """
    strand = greenlet.getcurrent()
    if not isinstance(strand, Strand):
        yield
        return
    line = strand.hub.lines.setdefault(key, deque())
    line.append(strand)
    try:
        if line[0] is not strand:
            strand.suspend()
        yield
    finally:
        was_first = line[0] is strand
        line.remove(strand)
        if not line:
            del strand.hub.lines[key]
        elif was_first:
            strand.hub.wake(line[0])
