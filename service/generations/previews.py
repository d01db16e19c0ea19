"""What a running generation looks like so far."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import structlog

from service.contract.errors import NotFound
from service.contract.job import Status
from service.contract.previews import PREVIEW_BYTES, PREVIEW_SIDE_PX
from service.generations.wait import WatchGeneration
from service.jobs.async_store import AsyncJobStore
from service.net.pictures import NotAPicture, sniff

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ShownPreview:
    """A small WebP file."""

    data: bytes
    #: Lower-case hex over `data`.
    sha256: str


class SeePreview:
    """The use case."""

    def __init__(self, *, store: AsyncJobStore, watch: WatchGeneration) -> None:
        self._store = store
        self._watch = watch

    async def see(self, tenant: str, generation_id: str) -> ShownPreview:
        """Return the latest preview; raises `NotFound` where there is none, else as `WatchGeneration.get`."""
        job = await self._watch.get(tenant, generation_id)
        if job.status is not Status.RUNNING:
            raise NotFound(f"There is no preview: the generation is {job.status}.")
        data = await self._store.preview(job.id)
        if data is None:
            raise NotFound("There is no preview of this generation yet.")
        if not _is_ours(data):
            # Somebody else wrote into our Redis: it is not handed on.
            log.error("preview_refused", job_id=job.id, bytes=len(data))
            raise NotFound("There is no preview of this generation.")
        return ShownPreview(data, hashlib.sha256(data).hexdigest())


def _is_ours(data: bytes) -> bool:
    """Return whether this is a small still WebP, as agents write them."""
    if len(data) > PREVIEW_BYTES:
        return False
    try:
        header = sniff(data)
    except NotAPicture:
        return False
    sides = max(header.width_px, header.height_px)
    return header.format == "webp" and header.frames == 1 and sides <= PREVIEW_SIDE_PX
