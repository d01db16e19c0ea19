"""Erasing a generation: what it asked for, what went in, what came out."""

from __future__ import annotations

from service.generations.ids import IdSource
from service.generations.wait import missing
from service.jobs.async_store import AsyncJobStore


class EraseGeneration:
    """The use case. The record is scrubbed at once; agents remove the objects within seconds."""

    def __init__(self, *, store: AsyncJobStore, ids: IdSource) -> None:
        self._store = store
        self._ids = ids

    async def erase(self, tenant: str, generation_id: str) -> None:
        """Erase, cancelling first where needed; raises `NotFound`, `Gone` (also the second time), `Unavailable`."""
        # The store erases again without complaint, so that agents may repeat it; a caller is told that it is gone.
        known = await self._store.get(tenant, generation_id) is not None
        if not known or not await self._store.erase(tenant, generation_id):
            raise await missing(self._ids, tenant, generation_id)
