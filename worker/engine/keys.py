"""Keys of shared work: equal where works may be done together."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False, slots=True)
class Alone:
    """A key that equals no other, of work that is shared with nobody; what it costs is known by its `kind`."""

    kind: Hashable


@dataclass(frozen=True, slots=True)
class Stepped:
    """A key whose calls come in few widths only: they are compiled or recorded for each, or capped."""

    kind: Hashable
    #: Rows, ascending; narrower calls are padded to the next.
    widths: tuple[int, ...]


#: A call is padded where it then is so full at least; emptier ones leave works to the next call instead.
_FULL = 0.75


def fitting(key: Hashable, limit: int, waiting: int) -> int:
    """Return how many of the waiting rows the next call takes where `limit` would fit.

    0 lets one work through, however wide. Padded to its width the call still fits.
    """
    if not isinstance(key, Stepped):
        return limit
    widths = [width for width in key.widths if width <= limit]
    below = max((width for width in widths if width <= waiting), default=0)
    above = min((width for width in widths if width >= waiting), default=below)
    return above if not below or waiting >= _FULL * above else below


def kind_of(key: Hashable) -> Hashable:
    """Return what works have in common that cost alike, whether they may be done together or not."""
    return key.kind if isinstance(key, Alone) else key
