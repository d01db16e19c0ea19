"""`/v1/generations/validate`: what would become of a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api import documentation as doc
from service.api.edge import request_id_of
from service.api.gateway import caller_of, gateway_of
from service.api.generation_body import REQUEST_BODY, generation_body
from service.api.models import ModelState, model_state
from service.api.operation import Operation, only_post
from service.api.rate_headers import rate_headers
from service.generations.resource import GENERATIONS_PATH, RequestResource, generation_resource
from service.generations.validate import Validated

VALIDATE_PATH = GENERATIONS_PATH + "/validate"

router = APIRouter(route_class=Operation, tags=["generations"])


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EstimateResource(_Resource):
    """What is expected of a generation; null = not known. Seconds from now."""

    gpu_s: Annotated[
        float | None, Field(ge=0, description="s of a device's time, what `timings.gpu_s` and the usage will say.")
    ]
    position: Annotated[int | None, Field(ge=1, description="1 = next.")]
    start_s: Annotated[float | None, Field(ge=0, description="s until it would start.")]
    finish_s: Annotated[float | None, Field(ge=0, description="s until it would be done.")]


class NeededModel(_Resource):
    """The model that would draw it."""

    id: str
    state: Annotated[ModelState, Field(description="As in `GET /v1/models`; `warm`: a worker has it in memory.")]
    workers: Annotated[int, Field(ge=0, description="Workers that have it in memory.")]


class RefusalResource(_Resource):
    """What `POST /v1/generations` would answer now."""

    code: Annotated[str, Field(description="The `code` of the problem.")]
    message: str
    retry_after_s: Annotated[int, Field(ge=0, description="What `Retry-After` would say.")]


class ValidationResource(_Resource):
    """What would become of a request."""

    accepted: Annotated[bool, Field(description="Whether there is room for it now.")]
    refusal: Annotated[RefusalResource | None, Field(description="Where there is none.")]
    request: Annotated[
        RequestResource,
        Field(
            description="Every default filled in, and the priority that it would have. A seed that is drawn is another "
            "each time; of a picture by URL, and of an upload that was never used, nothing is known."
        ),
    ]
    estimate: EstimateResource
    model: NeededModel


@router.post(
    VALIDATE_PATH,
    operation_id="validateGeneration",
    summary="See what would become of a request",
    responses={
        200: {
            "model": ValidationResource,
            "description": "The request is as it has to be.",
            "headers": doc.RATE_HEADERS,
        },
        **doc.refusals(408, 413, 415, 422),
    },
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def validate_generation(request: Request) -> Response:
    """Check a body as `POST /v1/generations` does, and say what it would cost and when it would be done.

    Nothing is stored, fetched or drawn, and nothing of a limit is used.
    """
    gateway, caller = gateway_of(request), await caller_of(request)
    sent = await generation_body(request)
    validated = await gateway.validate.validate(caller, sent.fields, request_id=request_id_of(request))
    response = Response(_resource(validated).model_dump_json(), media_type="application/json")
    response.headers.update(rate_headers(validated.rate))
    return response


def _resource(validated: Validated) -> ValidationResource:
    outlook, refusal, model = validated.outlook, validated.refusal, validated.model
    return ValidationResource(
        accepted=refusal is None,
        refusal=refusal
        and RefusalResource(code=refusal.code, message=refusal.message, retry_after_s=refusal.retry_after_s),
        request=generation_resource(validated.job).request,
        estimate=EstimateResource(
            gpu_s=None if validated.gpu_s is None else round(validated.gpu_s, 3),
            position=outlook and outlook.position,
            start_s=outlook and outlook.start_s,
            finish_s=outlook and outlook.finish_s,
        ),
        model=NeededModel(id=model.card.id, state=model_state(model), workers=model.warm),
    )


only_post(router, VALIDATE_PATH)
