"""Keys of shared work: equal where works may be done together."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False, slots=True)
class Alone:
    """A key that equals no other, of work that is shared with nobody; what it costs is known by its `kind`."""

    kind: Hashable


def kind_of(key: Hashable) -> Hashable:
    """Return what works have in common that cost alike, whether they may be done together or not."""
    return key.kind if isinstance(key, Alone) else key
