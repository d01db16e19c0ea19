"""Many generations in one call: the body, and its requests as drafts whose errors say which of them is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from service.contract.catalog import ModelCard
from service.contract.errors import FieldError, InvalidRequest
from service.generations.field_errors import MAX_ERRORS, pointer
from service.generations.idempotency import IdempotentCall
from service.generations.request import GenerationRequest
from service.generations.specification import Draft
from service.generations.staged import within
from service.generations.submit import SubmitGeneration, Submitted
from service.tenants.authentication import Caller

#: Requests of one call; the script that accepts them keeps Redis busy for 3 ms then.
BATCH_MAX = 100

_EXAMPLE: dict[str, Any] = {
    "requests": [
        {"prompt": "a red circle on a blue background", "seed": 7, "labels": {"order": "12"}},
        {"prompt": "a green square", "num_images": 2, "priority": "low"},
    ]
}


class BatchRequest(BaseModel):
    """Generations that are accepted together, or not at all."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [_EXAMPLE]})

    requests: Annotated[
        list[GenerationRequest],
        Field(min_length=1, max_length=BATCH_MAX, description="Each as the body of `POST /v1/generations`."),
    ]


class SubmitBatch:
    """The use case: as many single ones, accepted by one script."""

    def __init__(self, submit: SubmitGeneration) -> None:
        self._submit = submit

    async def submit(
        self, caller: Caller, body: Mapping[str, Any], *, call: IdempotentCall | None, request_id: str
    ) -> Submitted:
        """Accept all requests of a body or none; raises as `SubmitGeneration.submit_all`."""

        async def drafting(cards: Sequence[ModelCard]) -> Sequence[Draft]:
            return await self._drafts(requests_of(body), cards)

        return await self._submit.submit_all(caller, drafting, call=call, request_id=request_id)

    async def _drafts(self, bodies: Sequence[object], cards: Sequence[ModelCard]) -> Sequence[Draft]:
        drafts: list[Draft] = []
        errors: list[FieldError] = []
        for at, body in enumerate(bodies):
            where = pointer("requests", at)
            if not isinstance(body, dict):
                errors.append(FieldError(where, "must be an object, as the body of POST /v1/generations"))
                continue
            try:
                drafts.append(replace(self._submit.draft(cast("dict[str, Any]", body), cards), where=where))
            except InvalidRequest as err:
                errors += within(where, err.errors)
            # A hundred requests are 20 ms of checking: other calls are not to wait for all of it.
            await asyncio.sleep(0)
        if errors:
            raise InvalidRequest(errors[:MAX_ERRORS])
        return drafts


def requests_of(body: Mapping[str, Any]) -> Sequence[object]:
    """Return the requests in a body, unchecked but for their number; raises `InvalidRequest`."""
    errors = [FieldError(pointer(name), "is not a field of this request") for name in body if name != "requests"]
    requests = body.get("requests")
    if not isinstance(requests, list) or not 1 <= len(cast("list[object]", requests)) <= BATCH_MAX:
        errors.append(FieldError("/requests", f"must be a list of 1 to {BATCH_MAX} requests"))
    if errors:
        raise InvalidRequest(errors[:MAX_ERRORS])
    return cast("list[object]", requests)
