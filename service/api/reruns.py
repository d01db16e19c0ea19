"""`/v1/generations/{id}/rerun`: a generation drawn again."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api import documentation as doc
from service.api.edge import request_id_of
from service.api.gateway import caller_of, gateway_of
from service.api.operation import Operation, idempotent
from service.api.optional_body import optional_object
from service.api.rate_headers import rate_headers
from service.generations.resource import GENERATIONS_PATH, GenerationResource, generation_path, generation_resource
from service.telemetry.context import bind_job

router = APIRouter(route_class=Operation, tags=["generations"])


@router.post(
    GENERATIONS_PATH + "/{generation_id}/rerun",
    operation_id="rerunGeneration",
    summary="Draw a generation again",
    status_code=202,
    responses={
        202: {
            "model": GenerationResource,
            "description": "Accepted: a generation of its own, with `rerun_of`.",
            "headers": {
                "Location": doc.header("Path of the new generation."),
                "Idempotency-Replayed": doc.header("`true` where an earlier call with this key created it."),
                **doc.RATE_HEADERS,
            },
        },
        **doc.refusals(404, 408, 410, 413, 415, 422, 429),
    },
    openapi_extra={
        "parameters": [doc.GENERATION_ID, doc.IDEMPOTENCY_KEY],
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RerunRequest"}}},
        },
    },
)
async def rerun_generation(request: Request) -> Response:
    """Queue the same specification anew: prompt, seed, model, every number, and copies of the input pictures.

    Priority, labels, webhook and retention are the call's own. The original may be in any status, and may be
    erased afterwards.
    """
    gateway, caller = gateway_of(request), await caller_of(request)
    generation_id = str(request.path_params["generation_id"])
    body = await optional_object(request)
    call = idempotent(request, f"{GENERATIONS_PATH}/{generation_id}/rerun", body)
    submitted = await gateway.rerun.rerun(caller, generation_id, body, call=call, request_id=request_id_of(request))
    job = submitted.job
    bind_job(job.id)
    content = generation_resource(job, gateway.outlooks.of(job)).model_dump_json()
    response = Response(content, status_code=202, media_type="application/json")
    response.headers["Location"] = generation_path(job.id)
    response.headers.update(rate_headers(submitted.rate))
    if submitted.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response
