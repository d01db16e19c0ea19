"""Bodies that may be left out."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from service.api.operation import json_object
from service.contract.errors import FieldError, InvalidRequest
from service.generations.field_errors import MAX_ERRORS, pointer


async def optional_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request's body, or an empty one where there is no body; raises as `json_object`."""
    return await json_object(request) if await request.body() else {}


async def no_fields(request: Request) -> None:
    """Return if there is no body, or an empty object; raises `InvalidRequest`, and as `json_object`."""
    fields = await optional_object(request)
    if fields:
        raise InvalidRequest(
            [FieldError(pointer(name), "is not a field of this request") for name in fields][:MAX_ERRORS]
        )
