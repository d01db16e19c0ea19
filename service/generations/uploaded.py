"""Uploads as input pictures: looked at when they are first used, copied within the storage for each job."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from service.contract.errors import Overloaded, Unavailable
from service.contract.generation import CONTENT_TYPES, StoredInput
from service.generations.pictures import PictureLimits, PictureRefused, check_header, picture_of
from service.jobs.uploads import UploadRecord, UploadStore
from service.net.pictures import PictureHeader
from service.storage.errors import ObjectMissing, ObjectTooLarge, StorageUnavailable
from service.storage.keys import checked_key, input_key, sent_key
from service.storage.s3 import ObjectStorage

log = structlog.get_logger(__name__)

_UNKNOWN = "must be the id of an upload of yours that is neither expired nor deleted; POST /v1/uploads makes one"
_NOT_SENT = "names an upload whose file is not there yet; send the file with the upload's form first"
_OTHER_FILE = "names an upload whose file is not the one that was declared: its {} differs; send the right file"


@dataclass(frozen=True, slots=True)
class UploadedPicture:
    """An upload whose file was looked at, and whose bytes are those of its SHA-256."""

    upload: UploadRecord
    header: PictureHeader

    def store(self, storage: ObjectStorage, prefix: str, index: int) -> StoredInput:
        """Copy it below a job's prefix; blocks. Raises `PictureRefused` where the upload was deleted meanwhile."""
        upload, picture_format = self.upload, self.header.format
        key = input_key(prefix, index, picture_format)
        source = checked_key(upload.prefix, upload.sha256, picture_format)
        try:
            storage.copy(source, key, content_type=CONTENT_TYPES[picture_format])
        except ObjectMissing:
            raise PictureRefused(_UNKNOWN) from None
        return StoredInput(
            key=key,
            format=picture_format,
            width_px=self.header.width_px,
            height_px=self.header.height_px,
            bytes=upload.bytes,
            sha256=upload.sha256,
        )


class UploadedPictures:
    """Finds uploads by their ids, and looks at those that nobody has used yet."""

    def __init__(self, *, store: UploadStore, storage: ObjectStorage, limits: PictureLimits, threads: Executor) -> None:
        self._store = store
        self._storage = storage
        self._limits = limits
        self._threads = threads

    async def look(self, tenant: str, upload_id: str) -> StoredInput | None:
        """Return what is known of an upload, None where nobody has looked at its file yet; raises `PictureRefused`."""
        upload = await self._store.get(tenant, upload_id)
        if upload is None:
            raise PictureRefused(_UNKNOWN)
        if upload.width_px is None or upload.height_px is None:
            return None
        check_header(PictureHeader(upload.format, upload.width_px, upload.height_px), self._limits)
        return StoredInput(
            key="",
            format=upload.format,
            width_px=upload.width_px,
            height_px=upload.height_px,
            bytes=upload.bytes,
            sha256=upload.sha256,
        )

    async def read(self, tenant: str, upload_id: str) -> UploadedPicture:
        """Return an upload of this tenant as a picture; raises `PictureRefused` saying what is wrong with it."""
        upload = await self._store.use(tenant, upload_id)
        if upload and upload.state == "waiting":
            try:
                upload = await self._looked_at(upload)
            except ObjectMissing:
                # Unless another call was faster, and took the sent file away.
                upload = await self._store.use(tenant, upload_id)
                if upload and upload.state == "waiting":
                    raise PictureRefused(_NOT_SENT) from None
        if upload is None or upload.width_px is None or upload.height_px is None:
            raise PictureRefused(_UNKNOWN)
        header = PictureHeader(upload.format, upload.width_px, upload.height_px)
        check_header(header, self._limits)
        return UploadedPicture(upload, header)

    async def spend(self, tenant: str, pictures: Iterable[UploadedPicture]) -> None:
        """Count the uploads of these pictures as used; if Redis is away, they count as unused until they expire."""
        try:
            await self._store.spend(tenant, [each.upload for each in pictures])
        except (Unavailable, Overloaded):
            log.info("uploads_left_as_unused")

    async def _looked_at(self, upload: UploadRecord) -> UploadRecord | None:
        """Return the upload after its file was checked, and stored where no form reaches; None if it is gone by now.

        Raises `PictureRefused`, `ObjectMissing`.
        """
        loop = asyncio.get_running_loop()
        header = await loop.run_in_executor(self._threads, self._check, upload)
        ready = await self._store.settle(upload.tenant, upload.id, width_px=header.width_px, height_px=header.height_px)
        await loop.run_in_executor(self._threads, self._drop_sent, upload)
        return ready

    def _check(self, upload: UploadRecord) -> PictureHeader:
        try:
            data = self._storage.get(sent_key(upload.prefix), max_bytes=upload.bytes)
        except ObjectTooLarge:
            raise PictureRefused(_OTHER_FILE.format("size")) from None
        if len(data) != upload.bytes:
            raise PictureRefused(_OTHER_FILE.format("size"))
        if hashlib.sha256(data).hexdigest() != upload.sha256:
            raise PictureRefused(_OTHER_FILE.format("SHA-256"))
        picture = picture_of(data, self._limits)
        if picture.format != upload.format:
            raise PictureRefused(f"names an upload that was declared as {upload.content_type}, and is none")
        # These bytes, not a copy of the object: its sender may replace it at any moment. Whoever else stores under this
        # key stores the same.
        self._storage.put(
            checked_key(upload.prefix, upload.sha256, picture.format),
            data,
            content_type=upload.content_type,
            sha256=upload.sha256,
        )
        return PictureHeader(picture.format, picture.width_px, picture.height_px)

    def _drop_sent(self, upload: UploadRecord) -> None:
        try:
            self._storage.delete([sent_key(upload.prefix)])
        except StorageUnavailable:
            log.info("sent_file_left_to_erasure")
