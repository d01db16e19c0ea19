"""Uploads in Redis: what a caller said of a file, and what was found when it was first used.

A record ends by itself when it expires. The prefix of its objects is among the erasures from the start, due a while
after that, and each use puts both off: no crash of anybody leaves a file for ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.asyncio import Redis

from service.contract.generation import CONTENT_TYPES, ImageFormat
from service.jobs.commands import Argument, Idempotency
from service.jobs.keys import key
from service.jobs.outages import as_unavailable
from service.jobs.scripts import ScriptName, script_text

log = structlog.get_logger(__name__)

#: ms from the end of an upload until its objects are erased: what was begun in time is through by then, a form's
#: upload, a look at the file or its copy to a job.
GRACE_MS = 3_600_000

_SCRIPTS: tuple[ScriptName, ...] = ("create_upload", "use_upload", "erase_upload")

CreateOutcome = Literal["created", "replayed", "mismatch", "gone", "full"]
UploadState = Literal["waiting", "ready"]


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """How long uploads live, and how many a tenant may have that no generation has used."""

    #: ms from the creation, and from each use.
    ttl_ms: int
    unused: int
    #: Bytes of these together.
    unused_bytes: int
    #: The longest that a form can be used.
    form_ttl_ms: int


class UploadRecord(BaseModel):
    """One upload."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    id: str
    tenant: str
    #: Of its objects (`service.storage.keys`).
    prefix: str
    state: UploadState
    format: ImageFormat
    bytes: int
    sha256: str
    created_ms: int
    expires_ms: int
    #: px; None until it was looked at.
    width_px: int | None = None
    height_px: int | None = None

    @property
    def content_type(self) -> str:
        """The media type of its form."""
        return CONTENT_TYPES[self.format]


@dataclass(frozen=True, slots=True)
class Created:
    """What became of a new upload."""

    outcome: CreateOutcome
    #: None unless it was created, now or earlier.
    upload: UploadRecord | None
    #: ms until there is room again, where there is none.
    room_in_ms: int


class UploadStore:
    """Everything a gateway does to uploads. `clock` as in `JobStore`; raises `Unavailable`; all may be repeated."""

    def __init__(self, redis: Redis, limits: UploadLimits, *, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._limits = limits
        self._clock = clock
        self._scripts = {name: redis.register_script(script_text(name)) for name in _SCRIPTS}

    async def create(
        self,
        upload_id: str,
        tenant: str,
        prefix: str,
        *,
        image_format: ImageFormat,
        size_bytes: int,
        sha256: str,
        idempotency: Idempotency | None,
    ) -> Created:
        """Note that a file will come."""
        outcome, of, room_in_ms, *flat = cast(
            "tuple[CreateOutcome, str, int, *tuple[str, ...]]",
            await self._run(
                "create_upload",
                [
                    upload_id, tenant, prefix,
                    self._limits.ttl_ms, GRACE_MS, self._limits.unused, self._limits.unused_bytes,
                    idempotency.record if idempotency else "",
                    idempotency.body_sha256 if idempotency else "",
                    idempotency.ttl_s if idempotency else 0,
                    "format", image_format, "bytes", size_bytes, "sha256", sha256,
                ],
            ),
        )  # fmt: skip
        return Created(outcome, _record(of, _pairs(flat), tenant), room_in_ms)

    async def get(self, tenant: str, upload_id: str) -> UploadRecord | None:
        """Return an upload; None where it is unknown, another tenant's, expired or erased."""
        with as_unavailable():
            fields = await cast("Awaitable[dict[str, str]]", self._redis.hgetall(key("upload", upload_id)))
        return _record(upload_id, fields, tenant)

    async def use(self, tenant: str, upload_id: str) -> UploadRecord | None:
        """Return an upload as `get` does; one that is ready lives anew from now on."""
        return await self._use(tenant, upload_id, [])

    async def settle(self, tenant: str, upload_id: str, *, width_px: int, height_px: int) -> UploadRecord | None:
        """Note that the file was looked at and lies under its checked key, and use it."""
        return await self._use(tenant, upload_id, ["width_px", width_px, "height_px", height_px])

    async def spend(self, tenant: str, uploads: Iterable[UploadRecord]) -> None:
        """Count uploads no longer as unused: a generation that names them was accepted."""
        entries = [f"{each.id} {each.bytes}" for each in uploads]
        if entries:
            with as_unavailable():
                await self._redis.zrem(key("tenant_uploads", tenant), *entries)

    async def erase(self, tenant: str, upload_id: str, *, files_prefix: str) -> bool:
        """Forget an upload and have its objects erased; False where this tenant has none such.

        `files_prefix`: of all its files, below its own prefix.
        """
        arguments = [upload_id, tenant, self._limits.form_ttl_ms, GRACE_MS, files_prefix]
        return await self._run("erase_upload", arguments) == 1

    async def _use(self, tenant: str, upload_id: str, found: Sequence[Argument]) -> UploadRecord | None:
        arguments = [upload_id, tenant, self._limits.ttl_ms, GRACE_MS, *found]
        return _record(upload_id, _pairs(cast("list[str]", await self._run("use_upload", arguments))), tenant)

    async def _run(self, name: ScriptName, arguments: Sequence[Argument]) -> object:
        now = "" if self._clock is None else self._clock()
        with as_unavailable():
            return await self._scripts[name](args=[now, *arguments])


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _record(upload_id: str, fields: Mapping[str, Any], tenant: str) -> UploadRecord | None:
    if fields.get("tenant") != tenant or fields.get("state") == "erased":
        return None
    try:
        return UploadRecord.model_validate({"id": upload_id, **fields})
    except ValidationError:
        # Nobody can use it; it expires.
        log.error("upload_corrupt", upload_id=upload_id)
        return None
