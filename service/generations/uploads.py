"""Uploads: files that callers send straight to the storage, to be drawn from by any number of generations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract.errors import (
    DarkroomError,
    FieldError,
    Gone,
    IdempotencyMismatch,
    InvalidRequest,
    LimitReached,
    NotFound,
    Overloaded,
)
from service.contract.generation import CONTENT_TYPES, ImageFormat
from service.generations.admission import MemoryWatch
from service.generations.field_errors import field_errors
from service.generations.idempotency import IdempotentCall
from service.generations.ids import IdSource
from service.jobs.commands import Idempotency
from service.jobs.uploads import UploadRecord, UploadStore
from service.storage.errors import ObjectMissing
from service.storage.keys import job_prefix, sent_key, upload_files_prefix
from service.storage.s3 import ObjectStorage, UploadForm

MediaType = Literal["image/png", "image/jpeg", "image/webp"]
#: `received`: the file is there, and was not looked at yet.
UploadStatus = Literal["waiting", "received", "ready"]

_FORMATS: dict[str, ImageFormat] = {media_type: name for name, media_type in CONTENT_TYPES.items()}
_DAY_S = 86_400


class UploadRequest(BaseModel):
    """The body of `POST /v1/uploads`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        json_schema_extra={"examples": [{"content_type": "image/png", "bytes": 245678, "sha256": "3f" * 32}]},
    )

    content_type: Annotated[MediaType, Field(description="What the file is.")]
    bytes: Annotated[
        int,
        Field(ge=1, le=1 << 28, json_schema_extra={"x-unit": "bytes"}, description="Size; the server may allow less."),
    ]
    sha256: Annotated[
        str, Field(pattern=r"^[0-9a-f]{64}$", description="64 lower-case hex digits: the SHA-256 over the file.")
    ]


@dataclass(frozen=True, slots=True)
class UploadRules:
    """What this server takes."""

    #: Bytes of one file.
    max_bytes: int
    #: s; how long an upload lives without a use.
    ttl_s: int
    #: s; how long a form can be used, at most.
    form_ttl_s: int


@dataclass(frozen=True, slots=True)
class OpenForm:
    """A form, and until when it can be used (ms since 1970)."""

    form: UploadForm
    expires_ms: int


@dataclass(frozen=True, slots=True)
class CreatedUpload:
    """A new upload, or that of an earlier call with the same Idempotency-Key."""

    upload: UploadRecord
    #: None where the file was looked at already.
    form: OpenForm | None
    replayed: bool


class Uploads:
    """The use cases. Another tenant's uploads are as unknown as invented ones."""

    def __init__(
        self,
        *,
        store: UploadStore,
        storage: ObjectStorage,
        ids: IdSource,
        memory: MemoryWatch,
        rules: UploadRules,
        threads: Executor,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store = store
        self._storage = storage
        self._ids = ids
        self._memory = memory
        self._rules = rules
        self._threads = threads
        self._now_ms = now_ms

    async def create(self, tenant: str, body: Mapping[str, Any], *, call: IdempotentCall | None) -> CreatedUpload:
        """Make ready for a file; the storage is not asked.

        Raises `InvalidRequest`, `IdempotencyMismatch`, `Gone` for the key of an upload that is no more, `LimitReached`,
        `Overloaded`, `Unavailable`.
        """
        request = self._checked(body)
        if self._memory.is_full():
            raise Overloaded("The queue's memory is almost full; nothing new is taken until it has drained.")
        now_ms = self._now_ms()
        upload_id = (await self._ids.upload_ids()).new(tenant, now_ms)
        key_ttl_s = max(_DAY_S, self._rules.ttl_s)
        created = await self._store.create(
            upload_id,
            tenant,
            job_prefix(tenant, now_ms, upload_id),
            image_format=_FORMATS[request.content_type],
            size_bytes=request.bytes,
            sha256=request.sha256,
            idempotency=call and Idempotency(call.record, call.body_sha256, key_ttl_s),
        )
        match created.outcome:
            case "mismatch":
                raise IdempotencyMismatch
            case "full":
                raise LimitReached(
                    "As many uploads of this tenant as may wait for a use, or were deleted and have forms that live.",
                    retry_after_s=max(1, -(-created.room_in_ms // 1000)),
                )
            case _ if created.upload is None:
                raise Gone("The upload of this Idempotency-Key is no longer there.")
            case outcome:
                return CreatedUpload(created.upload, self._form(created.upload), replayed=outcome == "replayed")

    async def get(self, tenant: str, upload_id: str) -> tuple[UploadRecord, UploadStatus]:
        """Return an upload and how far it is; raises `NotFound`, `Gone`, `Unavailable`."""
        upload = await self._known(tenant, upload_id)
        if upload.state == "ready":
            return upload, "ready"
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._storage.size_bytes, sent_key(upload.prefix))
        except ObjectMissing:
            return upload, "waiting"
        return upload, "received"

    async def erase(self, tenant: str, upload_id: str) -> None:
        """Delete an upload; generations that used it keep their copies. Raises `NotFound`, `Gone`, `Unavailable`."""
        upload = await self._known(tenant, upload_id)
        if not await self._store.erase(tenant, upload_id, files_prefix=upload_files_prefix(upload.prefix)):
            raise await self._missing(tenant, upload_id)

    async def _known(self, tenant: str, upload_id: str) -> UploadRecord:
        upload = await self._store.get(tenant, upload_id)
        if upload is None:
            raise await self._missing(tenant, upload_id)
        return upload

    async def _missing(self, tenant: str, upload_id: str) -> DarkroomError:
        if (await self._ids.upload_ids()).is_genuine(upload_id, tenant):
            return Gone("This upload has expired or was deleted.")
        return NotFound("There is no such upload here.")

    def _checked(self, body: Mapping[str, Any]) -> UploadRequest:
        try:
            request = UploadRequest.model_validate(body)
        except ValidationError as err:
            raise InvalidRequest(field_errors(err, UploadRequest)) from None
        if request.bytes > self._rules.max_bytes:
            raise InvalidRequest(
                [FieldError("/bytes", f"must be at most {self._rules.max_bytes} bytes on this server")]
            )
        return request

    def _form(self, upload: UploadRecord) -> OpenForm | None:
        if upload.state == "ready":
            return None
        now_ms = self._now_ms()
        ttl_s = max(1, min(self._rules.form_ttl_s, (upload.expires_ms - now_ms) // 1000))
        form = self._storage.presign_form(
            sent_key(upload.prefix), content_type=upload.content_type, size_bytes=upload.bytes, ttl_s=ttl_s
        )
        return OpenForm(form, now_ms + 1000 * ttl_s)
