"""Where things lie in the bucket. Everything of a job is under one prefix, so that erasing it is one call.

An upload has a prefix of the same form, and is erased in the same way.

{tenant}/{yyyy}/{mm}/{job}/                     the job, by the month of its creation (UTC)
{tenant}/{yyyy}/{mm}/{job}/inputs/{n}.{ext}     input pictures
{tenant}/{yyyy}/{mm}/{job}/{execution}/{n}.{ext}   results of one execution
{tenant}/{yyyy}/{mm}/{upload}/files/sent        what the caller's form stored, and may store again
{tenant}/{yyyy}/{mm}/{upload}/files/{sha256}.{ext}   the same file after it was checked: no form names it
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import MappingProxyType

from service.contract.generation import ImageFormat

EXTENSIONS: MappingProxyType[ImageFormat, str] = MappingProxyType({"png": "png", "jpeg": "jpg", "webp": "webp"})

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_JOB_PREFIX = re.compile(rf"{_SEGMENT.pattern}/\d{{4}}/\d{{2}}/{_SEGMENT.pattern}/")


def job_prefix(tenant: str, created_ms: int, job_id: str) -> str:
    """Return the prefix of all objects of a job, or of an upload. ValueError for names that could leave it."""
    created = datetime.fromtimestamp(created_ms / 1000, tz=UTC)
    return f"{_segment(tenant)}/{created:%Y/%m}/{_segment(job_id)}/"


def input_key(prefix: str, index: int, image_format: ImageFormat) -> str:
    """Return the key of a job's input picture; `prefix` is `job_prefix`'s."""
    return f"{_whole(prefix)}inputs/{index}.{EXTENSIONS[image_format]}"


def execution_prefix(prefix: str, execution_id: str) -> str:
    """Return the prefix of what one execution stored: all that a fenced execution may erase."""
    return f"{_whole(prefix)}{_segment(execution_id)}/"


def image_key(prefix: str, execution_id: str, index: int, image_format: ImageFormat) -> str:
    """Return the key of a result picture; `prefix` is `job_prefix`'s."""
    return f"{execution_prefix(prefix, execution_id)}{index}.{EXTENSIONS[image_format]}"


def upload_files_prefix(prefix: str) -> str:
    """Return the prefix of an upload's files; `prefix` is `job_prefix`'s."""
    return f"{_whole(prefix)}files/"


def sent_key(prefix: str) -> str:
    """Return the key that an upload's form stores to; `prefix` is `job_prefix`'s."""
    return f"{upload_files_prefix(prefix)}sent"


def checked_key(prefix: str, sha256: str, image_format: ImageFormat) -> str:
    """Return the key of an upload's file once its bytes were seen to be those of `sha256`."""
    return f"{upload_files_prefix(prefix)}{_segment(sha256)}.{EXTENSIONS[image_format]}"


def is_within_a_job(prefix: str) -> bool:
    """Whether the prefix is a job's or lies below one; nothing above may be erased in one call."""
    found = _JOB_PREFIX.match(prefix)
    if found is None:
        return False
    rest = prefix[found.end() :]
    return not rest or (rest.endswith("/") and all(_SEGMENT.fullmatch(part) for part in rest[:-1].split("/")))


def _segment(name: str) -> str:
    if _SEGMENT.fullmatch(name) is None:
        msg = "a name in a storage key has 1 to 128 of A-Z a-z 0-9 . _ - and no leading dot"
        raise ValueError(msg)
    return name


def _whole(prefix: str) -> str:
    if _JOB_PREFIX.fullmatch(prefix) is None:
        msg = "not the prefix of a job"
        raise ValueError(msg)
    return prefix
