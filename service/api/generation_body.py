"""The body of a generation: JSON, or a form of JSON and files."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request

from service.api.multipart import FormPart, boundary_of, is_multipart, parse_parts
from service.api.operation import idempotent, json_object
from service.api.strict_json import parse_object
from service.contract.errors import FieldError, InvalidRequest, MalformedRequest
from service.generations.idempotency import IdempotentCall
from service.generations.request import FileAsset

_REQUEST = "request"
_FILES = ("image", "mask")
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")

#: `requestBody` of operations that take such a body.
REQUEST_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": "JSON; or a form of JSON and files, with the header `X-Darkroom: 1` where AUTH=none.",
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/GenerationRequest"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [_REQUEST],
                "additionalProperties": False,
                "properties": {
                    _REQUEST: {"$ref": "#/components/schemas/GenerationRequest"},
                    "image": {"type": "string", "format": "binary", "description": "A file, in place of its `image`."},
                    "mask": {"type": "string", "format": "binary", "description": "A file, in place of its `mask`."},
                },
            },
            "encoding": {_REQUEST: {"contentType": "application/json"}},
        },
    },
}


@dataclass(frozen=True, slots=True)
class GenerationBody:
    """What was sent, not looked at closer yet."""

    #: The request; a file stands in it as a `FileAsset`.
    fields: dict[str, Any]
    _files: Mapping[str, bytes]

    async def call(self, request: Request, path: str, threads: Executor) -> IdempotentCall | None:
        """Return what this call is known by when it is repeated; None without a key. Raises `InvalidRequest`."""
        if not self._files or "idempotency-key" not in request.headers:
            return idempotent(request, path, self.fields)
        digests = await asyncio.get_running_loop().run_in_executor(threads, _digests, self._files)
        plain = {name: value for name, value in self.fields.items() if name not in self._files}
        return idempotent(request, path, {"request": plain, "files": digests})


async def generation_body(request: Request) -> GenerationBody:
    """Return the body of a request.

    Raises `UnsupportedMedia`, `MalformedRequest`, `InvalidRequest` for its parts, `RequestTooLarge`, `RequestTimedOut`.
    """
    content_types = request.headers.getlist("content-type")
    if len(content_types) != 1 or not is_multipart(content_types[0]):
        return GenerationBody(await json_object(request), {})
    boundary = boundary_of(content_types[0])
    return _assembled(parse_parts(await request.body(), boundary))


def _assembled(parts: list[FormPart]) -> GenerationBody:
    found: dict[str, FormPart] = {}
    errors: list[FieldError] = []
    for number, part in enumerate(parts, 1):
        # What is no plain name is not repeated.
        where = part.name if _NAME.fullmatch(part.name) else f"part {number}"
        if part.name not in {_REQUEST, *_FILES}:
            errors.append(FieldError(where, f"is not a part of this request: {_REQUEST}, {', '.join(_FILES)}"))
        elif part.name in found:
            errors.append(FieldError(where, "is given twice"))
        elif part.name == _REQUEST and part.media_type not in {None, "text/plain", "application/json"}:
            errors.append(FieldError(where, "must be application/json"))
        elif part.media_type is not None and part.media_type.startswith("multipart/"):
            errors.append(FieldError(where, "must be one file, not a form of its own"))
        found.setdefault(part.name, part)
    if _REQUEST not in found:
        errors.append(FieldError(_REQUEST, "is required: the JSON object, as without files"))
    if errors:
        raise InvalidRequest(errors)
    fields = _parsed(found.pop(_REQUEST).data)
    files = {name: part.data for name, part in found.items()}
    twice = [
        FieldError(f"/{name}", "is given twice, here and as a file") for name in files if fields.get(name) is not None
    ]
    if twice:
        raise InvalidRequest(twice)
    return GenerationBody({**fields, **{name: FileAsset(data=data) for name, data in files.items()}}, files)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        return parse_object(data)
    except MalformedRequest as err:
        raise MalformedRequest(err.message.replace("The body", f"The part `{_REQUEST}`")) from None


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
