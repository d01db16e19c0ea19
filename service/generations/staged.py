"""Input pictures of all requests of one call: stored before their jobs are accepted, erased where these are not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.contract.errors import FieldError, InvalidRequest
from service.contract.job import Job
from service.generations.field_errors import MAX_ERRORS
from service.generations.inputs import InputPictures
from service.generations.pictures import CopiedPicture
from service.generations.specification import Draft
from service.generations.uploaded import UploadedPicture
from service.tenants.authentication import Caller

#: Requests whose pictures are in memory at once: a file may be larger than all that refers to it.
_AT_ONCE = 4
#: Requests whose pictures are refused before no more are looked at: each may take the time of a fetch, and a call of a
#: hundred would hold its caller, and its tenant's turns, for minutes.
_ENOUGH_REFUSED = 8


class StagedInputs:
    """The inputs of one call. Whoever fills it has to discard it; once the jobs are accepted that does nothing."""

    def __init__(self, inputs: InputPictures, caller: Caller) -> None:
        self._inputs = inputs
        self._caller = caller
        #: Object prefixes of the jobs that have pictures.
        self.prefixes: list[str] = []
        #: Those below which something may lie.
        self._used: set[str] = set()
        #: Not the other pictures: these are in memory.
        self._uploaded: list[UploadedPicture] = []
        self._refused = 0
        #: Nothing more is read: the call is refused, whatever the rest is.
        self._hopeless = False

    async def fill(self, drafts: Sequence[Draft], jobs: Sequence[Job]) -> list[Job]:
        """Store the pictures of each request; return the jobs that name them.

        Raises `InvalidRequest` with what is wrong with them, or `RateLimited` before any is read.
        """
        todo = [at for at, each in enumerate(drafts) if each.has_pictures]
        if not todo:
            return list(jobs)
        prefixes = [jobs[at].object_prefix for at in todo]
        await self._inputs.stage(self._caller.tenant, prefixes, jobs=len(jobs))
        self.prefixes = prefixes
        turns = asyncio.Semaphore(_AT_ONCE)
        # All end before one that failed is told: what is still on its way would outlive the erasure.
        results = await asyncio.gather(
            *(self._filled(drafts[at], jobs[at], turns) for at in todo), return_exceptions=True
        )
        filled = list(jobs)
        errors: list[FieldError] = []
        for at, result in zip(todo, results, strict=True):
            if isinstance(result, InvalidRequest):
                errors += result.errors
            elif isinstance(result, BaseException):
                raise result
            else:
                filled[at] = result
        if errors:
            raise InvalidRequest(errors[:MAX_ERRORS])
        return filled

    async def accepted(self) -> None:
        """Keep what was stored: it is the jobs' from now on."""
        self.prefixes = []
        await self._inputs.spend(self._caller.tenant, self._uploaded)

    async def discard(self) -> None:
        """Have what was stored erased, unless it was accepted."""
        if self.prefixes:
            await self._inputs.discard(self._used, unused=set(self.prefixes) - self._used)

    async def _filled(self, drafted: Draft, job: Job, turns: asyncio.Semaphore) -> Job:
        async with turns:
            if self._hopeless:
                return job
            try:
                pictures = await self._inputs.read(self._caller, drafted.request)
                pictures |= {name: CopiedPicture(stored) for name, stored in drafted.copied.items()}
                self._uploaded += [each for each in pictures.values() if isinstance(each, UploadedPicture)]
                self._used.add(job.object_prefix)
                stored = await self._inputs.keep(pictures, job.object_prefix)
            except InvalidRequest as err:
                self._refused += 1
                self._hopeless = self._hopeless or self._refused >= _ENOUGH_REFUSED
                raise InvalidRequest(within(drafted.where, err.errors)) from None
            except BaseException:
                self._hopeless = True
                raise
        return job.model_copy(update={"spec": job.spec.model_copy(update=stored)})


def within(where: str, errors: Sequence[FieldError]) -> list[FieldError]:
    """Return errors of a request as errors of the body that it is in."""
    return [FieldError(where + each.pointer, each.message) for each in errors]
