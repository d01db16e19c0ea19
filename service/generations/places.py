"""How many replies a gateway holds for each tenant at once: nobody takes all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.contract.errors import LimitReached


class TenantPlaces:
    """Places of each tenant in this process, of one kind. `limit` None = as many as it wants."""

    def __init__(self, refusal: str, limit: int | None) -> None:
        self._refusal = refusal
        self._limit = limit
        self._taken: Counter[str] = Counter()

    @contextmanager
    def place(self, tenant: str, *, wanted: bool = True) -> Iterator[None]:
        """Hold a place of the tenant until the block ends, if one is wanted; raises `LimitReached`."""
        if not wanted or self._limit is None:
            yield
            return
        if self._taken[tenant] >= self._limit:
            raise LimitReached(self._refusal)
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
