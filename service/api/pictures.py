"""The picture itself as the answer to a creating call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from fastapi import Response

from service.api.gateway import Gateway
from service.api.problems import NotAcceptable
from service.contract.errors import FieldError, GenerationFailed, Gone, InvalidRequest
from service.contract.generation import CONTENT_TYPES, ImageFormat
from service.contract.job import Job, Status
from service.generations.resource import generation_path, image_path
from service.storage.errors import ObjectMissing

#: Bytes read for one reply: a PNG of 4096 × 4096 px has at most 48 MiB.
_MAX_PICTURE_BYTES = 128 << 20


def with_picture_format(body: Mapping[str, Any], accepted: tuple[ImageFormat, ...]) -> dict[str, Any]:
    """Return the body asking for one picture in a format that the caller accepts; the best one where it says none.

    Raises `NotAcceptable` where its own `output.format` is not among them, `InvalidRequest` where it asks for several
    pictures. Whatever else is wrong with these fields is for the validation to say.
    """
    if isinstance(body.get("num_images"), int) and body["num_images"] != 1:
        message = "must be 1 where the picture itself is the reply; accept application/json for several"
        raise InvalidRequest([FieldError("/num_images", message)])
    output = body.get("output")
    if output is not None and not isinstance(output, dict):
        return dict(body)
    asked = cast("dict[str, Any]", output or {})
    if asked.get("format") is None:
        return {**body, "output": {**asked, "format": accepted[0]}}
    if asked["format"] in CONTENT_TYPES and asked["format"] not in accepted:
        raise _mismatch(accepted)
    return dict(body)


async def picture_response(gateway: Gateway, job: Job, accepted: tuple[ImageFormat, ...]) -> Response:
    """Return the bytes of the only picture of an ended job.

    Raises `GenerationFailed` where there is none, `Gone` where it was erased meanwhile, `NotAcceptable` where a
    repeated call now accepts other formats.
    """
    if job.status is not Status.SUCCEEDED:
        raise _failure(job)
    if job.spec.output.format not in accepted:
        raise _mismatch(accepted)
    image = job.images[0]
    if image.key is None:
        raise GenerationFailed("flagged", "The picture was withheld by the model's safety checker.")
    key, sha256 = image.key, image.sha256

    def fetch() -> bytes:
        return gateway.storage.get(key, max_bytes=_MAX_PICTURE_BYTES, sha256=sha256)

    try:
        data = await asyncio.get_running_loop().run_in_executor(gateway.threads, fetch)
    except ObjectMissing as err:
        raise Gone("This generation was erased.") from err
    headers = {"Location": generation_path(job.id), "Content-Location": image_path(job.id, image.index)}
    return Response(data, headers=headers, media_type=image.content_type)


def _failure(job: Job) -> GenerationFailed:
    """Return the error of a job that ended without pictures."""
    if job.error is not None:
        return GenerationFailed(job.error.code, job.error.message)
    if job.status is Status.EXPIRED:
        return GenerationFailed("deadline_exceeded", "The deadline passed before the picture was drawn.")
    return GenerationFailed("canceled", "The generation was canceled before the picture was drawn.")


def _mismatch(accepted: tuple[ImageFormat, ...]) -> NotAcceptable:
    names = ", ".join(CONTENT_TYPES[name] for name in accepted)
    return NotAcceptable(f"output.format is none of the accepted media types: {names}.")
