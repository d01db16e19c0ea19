"""Cancelling a generation."""

from __future__ import annotations

from service.contract.job import Job
from service.generations.ids import IdSource
from service.generations.wait import missing
from service.jobs.async_store import AsyncJobStore


class CancelGeneration:
    """The use case. Queued: canceled at once; running: within one denoising step; ended: left as it is."""

    def __init__(self, *, store: AsyncJobStore, ids: IdSource) -> None:
        self._store = store
        self._ids = ids

    async def cancel(self, tenant: str, generation_id: str) -> Job:
        """Return the job as it is then; raises `NotFound`, `Gone`, `Unavailable`."""
        job = await self._store.cancel(tenant, generation_id)
        if job is None:
            raise await missing(self._ids, tenant, generation_id)
        return job
