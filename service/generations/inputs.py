"""Input pictures of requests: read before anything is stored, and stored before the job that names them is."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Executor

import structlog

from service.contract.errors import FieldError, InvalidRequest, Overloaded, Unavailable
from service.contract.generation import StoredInput
from service.generations.admission import rate_refusal
from service.generations.pictures import InputPicture, Picture, PictureLimits, PictureRefused, picture_of, read_picture
from service.generations.remote import RemotePictures
from service.generations.request import Asset, FileAsset, GenerationRequest
from service.generations.uploaded import UploadedPicture, UploadedPictures
from service.jobs.async_store import AsyncJobStore
from service.storage.s3 import ObjectStorage
from service.tenants.authentication import Caller

log = structlog.get_logger(__name__)


class InputPictures:
    """Turns the assets of a request into pictures, and these into objects below a job's prefix."""

    def __init__(
        self,
        *,
        store: AsyncJobStore,
        storage: ObjectStorage,
        remote: RemotePictures,
        uploaded: UploadedPictures,
        limits: PictureLimits,
        threads: Executor,
    ) -> None:
        self._store = store
        self._remote = remote
        self._uploaded = uploaded
        self._storage = storage
        self._limits = limits
        self._threads = threads

    async def read(self, caller: Caller, request: GenerationRequest) -> dict[str, InputPicture]:
        """Return the pictures by field; raises `InvalidRequest` with everything that is wrong with them."""
        pictures: dict[str, InputPicture] = {}
        errors: list[FieldError] = []
        for name, asset in (("image", request.image), ("mask", request.mask)):
            if asset is None:
                continue
            try:
                pictures[name] = await self._read(caller, asset)
            except PictureRefused as err:
                errors.append(FieldError(_where(name, asset), str(err)))
        if errors:
            raise InvalidRequest(errors)
        return pictures

    async def look(self, caller: Caller, request: GenerationRequest) -> dict[str, StoredInput]:
        """Return what is known of the pictures, by field, without storing, fetching or using any.

        Nothing is known of one by URL, nor of an upload that was never used. Raises `InvalidRequest`.
        """
        found: dict[str, StoredInput] = {}
        errors: list[FieldError] = []
        for name, asset in (("image", request.image), ("mask", request.mask)):
            if asset is None:
                continue
            try:
                known = await self._look(caller, asset)
            except PictureRefused as err:
                errors.append(FieldError(_where(name, asset), str(err)))
                continue
            if known is not None:
                found[name] = known
        if errors:
            raise InvalidRequest(errors)
        return found

    async def stage(self, tenant: str, prefixes: Collection[str], *, jobs: int = 1) -> None:
        """Make ready to store inputs of so many jobs; raises `LimitReached` where that would be for nothing."""
        used_up = await self._store.stage_inputs(tenant, prefixes, jobs=jobs)
        if used_up:
            raise rate_refusal(used_up, jobs)

    async def keep(self, pictures: Mapping[str, InputPicture], prefix: str) -> dict[str, StoredInput]:
        """Store the pictures below a job's staged prefix; return what its specification says of them, by field.

        Raises `InvalidRequest` for one that is no longer there.
        """
        loop = asyncio.get_running_loop()
        uploads = [
            loop.run_in_executor(self._threads, picture.store, self._storage, prefix, index)
            for index, picture in enumerate(pictures.values())
        ]
        # Every upload ends before one that failed is told: what is still on its way would outlive the erasure.
        results = await asyncio.gather(*uploads, return_exceptions=True)
        stored: dict[str, StoredInput] = {}
        for name, result in zip(pictures, results, strict=True):
            if isinstance(result, PictureRefused):
                raise InvalidRequest([FieldError(f"/{name}", str(result))])
            if isinstance(result, BaseException):
                raise result
            stored[name] = result
        return stored

    async def spend(self, tenant: str, pictures: Iterable[UploadedPicture]) -> None:
        """Note that jobs with these uploads were accepted."""
        await self._uploaded.spend(tenant, pictures)

    async def discard(self, prefixes: Collection[str], *, unused: Collection[str] = ()) -> None:
        """Have stored inputs erased; if Redis is away too, staging does it within the hour."""
        try:
            await self._store.unstage_inputs(prefixes, unused=unused)
        except (Unavailable, Overloaded):
            log.info("inputs_left_to_staging")

    async def _read(self, caller: Caller, asset: Asset) -> InputPicture:
        """Return the picture that an asset gives or names; raises `PictureRefused`."""
        if isinstance(asset, FileAsset):
            return await self._file(asset.data)
        if asset.url is not None:
            return await self._remote.read(caller.tenant, asset.url)
        if asset.upload_id is not None:
            return await self._uploaded.read(caller.tenant, asset.upload_id)
        return await self._inline(asset.base64 or "")

    async def _file(self, data: bytes) -> Picture:
        return await asyncio.get_running_loop().run_in_executor(self._threads, picture_of, data, self._limits)

    async def _look(self, caller: Caller, asset: Asset) -> StoredInput | None:
        if asset.url is not None:
            self._remote.check(asset.url)
            return None
        if asset.upload_id is not None:
            return await self._uploaded.look(caller.tenant, asset.upload_id)
        given = self._file(asset.data) if isinstance(asset, FileAsset) else self._inline(asset.base64 or "")
        return (await given).unstored()

    async def _inline(self, text: str) -> Picture:
        return await asyncio.get_running_loop().run_in_executor(self._threads, read_picture, text, self._limits)


def _where(name: str, asset: Asset) -> str:
    """Return the pointer to what was wrong with a picture: a file is no field."""
    return f"/{name}" if asset.kind == "file" else f"/{name}/{asset.kind}"
