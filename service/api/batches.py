"""`/v1/generations/batch`: many generations in one call."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api import documentation as doc
from service.api.edge import request_id_of
from service.api.gateway import caller_of, gateway_of
from service.api.operation import Operation, idempotent, json_object, only_post
from service.api.rate_headers import rate_headers
from service.generations.resource import GENERATIONS_PATH, GenerationBatch, generation_resource

BATCH_PATH = GENERATIONS_PATH + "/batch"

router = APIRouter(route_class=Operation, tags=["generations"])


@router.post(
    BATCH_PATH,
    operation_id="createGenerations",
    summary="Draw pictures of many requests",
    status_code=202,
    responses={
        202: {
            "model": GenerationBatch,
            "description": "All were accepted: one generation for each request, in their order.",
            "headers": {
                "Idempotency-Replayed": doc.header("`true` where an earlier call with this key created them."),
                **doc.RATE_HEADERS,
            },
        },
        **doc.refusals(408, 410, 413, 415, 422, 429),
    },
    openapi_extra={
        "parameters": [doc.IDEMPOTENCY_KEY],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}},
        },
    },
)
async def create_generations(request: Request) -> Response:
    """Queue up to 100 generations, all or none: one that is wrong, or one too many for a limit, refuses the whole.

    The pointers of errors begin with the place of the request: `/requests/3/steps`. `Prefer: wait` does nothing here.
    """
    gateway, caller = gateway_of(request), await caller_of(request)
    body = await json_object(request)
    call = idempotent(request, BATCH_PATH, body)
    submitted = await gateway.batch.submit(caller, body, call=call, request_id=request_id_of(request))
    batch = GenerationBatch(data=[generation_resource(job, gateway.outlooks.of(job)) for job in submitted.jobs])
    response = Response(batch.model_dump_json(), status_code=202, media_type="application/json")
    response.headers.update(rate_headers(submitted.rate))
    if submitted.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


only_post(router, BATCH_PATH)
