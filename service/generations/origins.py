"""Web pages that may use the bucket: written into its rules once the storage answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import structlog

from service.contract.errors import Unavailable
from service.storage.s3 import ObjectStorage

log = structlog.get_logger(__name__)

#: s between two tries: at first, and at most where the storage stays away, or refuses.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0


class BucketOrigins:
    """A background task of a starting gateway; without origins there is none. Several gateways write the same."""

    _writing: asyncio.Task[None] | None = None

    def __init__(self, storage: ObjectStorage, origins: Sequence[str], threads: Executor) -> None:
        self._storage = storage
        self._origins = origins
        self._threads = threads

    def start(self) -> None:
        """Begin to write the rules."""
        if self._origins:
            self._writing = asyncio.create_task(self._write(), name="bucket origins")

    async def stop(self) -> None:
        """End."""
        if self._writing:
            self._writing.cancel()
            await asyncio.wait({self._writing})

    async def _write(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                call = asyncio.get_running_loop().run_in_executor(
                    self._threads, self._storage.allow_origins, self._origins
                )
                is_new = await call
            except Unavailable as err:
                if pause_s == _FIRST_PAUSE_S:
                    log.warning("bucket_origins_not_set", reason=err.message, advice="docs/operations.md has the rule")
            else:
                log.info("bucket_origins_set", new=is_new)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
