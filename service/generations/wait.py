"""Looking at a generation, at once or when it has ended."""

from __future__ import annotations

from service.contract.errors import DarkroomError, Gone, NotFound
from service.contract.job import Job
from service.generations.ids import IdSource
from service.jobs.async_store import AsyncJobStore
from service.jobs.waiting import Waiters


async def missing(ids: IdSource, tenant: str, generation_id: str) -> DarkroomError:
    """Return what to raise for an id without a record: was it erased, or never there?"""
    if (await ids.ids()).is_genuine(generation_id, tenant):
        return Gone("This generation was erased.")
    return NotFound("There is no such generation here.")


class WatchGeneration:
    """The use case. Another tenant's generations are as unknown as invented ones."""

    def __init__(self, *, store: AsyncJobStore, waiters: Waiters, ids: IdSource) -> None:
        self._store = store
        self._waiters = waiters
        self._ids = ids

    async def get(self, tenant: str, generation_id: str) -> Job:
        """Return the job as it is; raises `NotFound`, `Gone`, `Unavailable`."""
        job = await self._store.get(tenant, generation_id)
        if job is None:
            raise await missing(self._ids, tenant, generation_id)
        return job

    async def ended(self, tenant: str, generation_id: str, timeout_s: float) -> Job:
        """Return the job when it has ended, or as it is after `timeout_s` or when the process is about to end."""
        job = await self._waiters.ended(tenant, generation_id, timeout_s)
        if job is None:
            raise await missing(self._ids, tenant, generation_id)
        return job

    def release(self) -> None:
        """Answer every wait and end every stream now: the process is about to end."""
        self._waiters.release()
