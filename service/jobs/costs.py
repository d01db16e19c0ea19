"""How costs of calls lie in Redis: a hash for each kind of device, a field for each label and width. Pure.

Whatever else is found there is told as damaged, and taken away by the next agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from pydantic import ValidationError

from service.contract.costs import MAX_KEPT, CallCost, KeptCost

#: ms; costs of a device that nobody has any more are forgotten.
COSTS_TTL_MS = 28 * 86_400_000
#: Fields of a hash beyond which it is not ours any more, and is not even read: agents keep it at `MAX_KEPT`.
OVERGROWN = 4 * MAX_KEPT

#: Costs that are left when there were too many, so that not each write has to make room.
_KEPT_AFTER_TRIM = MAX_KEPT * 9 // 10
#: Characters of a valid entry, by far.
_ENTRY_CHARACTERS = 1000
#: s by which agents' clocks may differ.
_AHEAD_S = 86_400


@dataclass(frozen=True, slots=True)
class StoredCosts:
    """What a hash holds."""

    costs: tuple[CallCost, ...]
    #: Fields that hold no cost of theirs.
    damaged: tuple[str, ...]
    #: Fields to be dropped so that the hash stays small: the oldest, and all that are damaged.
    surplus: tuple[str, ...]


def device_key(device_name: str) -> str:
    """Return a kind of device as it is part of a Redis key."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")[:120]


def entries(costs: Iterable[CallCost], *, now_s: int) -> list[str]:
    """Return field, value, … of costs that were measured just now."""
    kept = [KeptCost(cost=cost, kept_s=now_s) for cost in costs]
    return [part for each in kept for part in (_field(each.cost), each.model_dump_json())]


def read_entries(stored: Mapping[str, str], *, now_s: int) -> StoredCosts:
    """Return what the fields of a hash say."""
    found: dict[str, KeptCost] = {}
    for field, text in stored.items():
        kept = _kept(text)
        if kept is not None and _field(kept.cost) == field:
            found[field] = kept
    damaged = tuple(field for field in stored if field not in found)
    surplus = damaged
    if len(found) > MAX_KEPT:
        oldest_first = sorted(found, key=lambda field: _kept_s(found[field], now_s))
        surplus = (*damaged, *oldest_first[: len(found) - _KEPT_AFTER_TRIM])
    dropped = set(surplus)
    return StoredCosts(tuple(kept.cost for field, kept in found.items() if field not in dropped), damaged, surplus)


def _field(cost: CallCost) -> str:
    each = cost.label
    size = f"{each.width_px}x{each.height_px}:{each.tokens}:{each.rows_each}"
    return f"{each.model}:{each.sha256}:{each.kind}:{size}:{each.dtype}:{cost.rows}"


# Most entries are as they were when they were read last: checking all of them anew took 140 ms.
@lru_cache(maxsize=2 * MAX_KEPT)
def _kept(text: str) -> KeptCost | None:
    if len(text) > _ENTRY_CHARACTERS:
        return None
    try:
        return KeptCost.model_validate_json(text)
    except ValidationError:
        return None


def _kept_s(kept: KeptCost, now_s: int) -> int:
    """Return when a cost was written; one from the future was written by nobody that we know."""
    return kept.kept_s if kept.kept_s <= now_s + _AHEAD_S else 0
