"""`/v1/generations`: the job resource."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api import documentation as doc
from service.api.edge import request_id_of
from service.api.gateway import caller_of, gateway_of
from service.api.generation_body import REQUEST_BODY, generation_body
from service.api.negotiation import accepted_formats
from service.api.operation import Operation, while_connected
from service.api.optional_body import no_fields
from service.api.pictures import picture_response, with_picture_format
from service.api.preferences import preferences
from service.api.rate_headers import rate_headers
from service.contract.errors import FieldError, InvalidRequest, NotFound
from service.contract.generation import CONTENT_TYPES, ResultImage
from service.contract.job import Job, Status
from service.generations.ids import ID_FORM
from service.generations.listing import listing_query
from service.generations.resource import (
    GENERATIONS_PATH,
    GenerationPage,
    GenerationResource,
    generation_path,
    generation_resource,
)
from service.telemetry.context import bind_job

router = APIRouter(route_class=Operation, tags=["generations"])

_IMAGE_NUMBER = re.compile(r"0|[1-9][0-9]?")

_GENERATION: doc.Responses = {200: {"model": GenerationResource, "description": "The generation."}}
_BODY_REFUSALS = (408, 413, 415, 422)


@router.post(
    GENERATIONS_PATH,
    operation_id="createGeneration",
    summary="Draw pictures",
    status_code=202,
    responses={
        202: {
            "model": GenerationResource,
            "description": "Accepted; it is queued, or still runs after the time that was waited.",
            "headers": {
                "Location": doc.header("Path of the generation."),
                "Preference-Applied": doc.header("What was honoured of Prefer."),
                "Idempotency-Replayed": doc.header("`true` where an earlier call with this key created it."),
                **doc.RATE_HEADERS,
            },
        },
        200: {
            "model": GenerationResource,
            "description": "It ended while the reply was held; as the picture itself where Accept asks for one.",
            "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in CONTENT_TYPES.values()},
            "headers": {
                "Location": doc.header("Path of the generation."),
                "Content-Location": doc.header("Path of the picture that is the body."),
                "Preference-Applied": doc.header("What was honoured of Prefer."),
                **doc.RATE_HEADERS,
            },
        },
        **doc.refusals(406, 410, 429, 504, *_BODY_REFUSALS),
    },
    openapi_extra={
        "parameters": [doc.PREFER, doc.IDEMPOTENCY_KEY],
        "requestBody": REQUEST_BODY,
    },
)
async def create_generation(request: Request) -> Response:
    """Queue a generation. `Prefer: wait` holds the reply for the result; `Accept: image/png` asks for the picture."""
    gateway, caller = gateway_of(request), await caller_of(request)
    accepted = accepted_formats(request.headers.getlist("accept"))
    prefer = preferences(request.headers.getlist("prefer"))
    sent = await generation_body(request)
    call = await sent.call(request, GENERATIONS_PATH, gateway.threads)
    body = with_picture_format(sent.fields, accepted) if accepted else sent.fields
    wait_s = prefer.waits(gateway.wait_cap_s, default_s=gateway.wait_cap_s if accepted else 0)
    # The place is taken first: whoever is told that there is none has queued nothing.
    with gateway.wait_places.place(caller.tenant, wanted=wait_s > 0):
        submitted = await gateway.submit.submit(caller, body, call=call, request_id=request_id_of(request))
        job = submitted.job
        bind_job(job.id)
        if wait_s > 0 and not job.ended:
            job = await while_connected(request, gateway.watch.ended(caller.tenant, job.id, wait_s))
    # Without a wait the reply is 202 even where a replayed generation has ended: the same answer to the same call.
    finished = job.ended and wait_s > 0
    if accepted and finished:
        response = await picture_response(gateway, job, accepted)
    else:
        response = _json(generation_resource(job, gateway.outlooks.of(job)), 200 if finished else 202)
        response.headers["Location"] = generation_path(job.id)
    response.headers["Vary"] = "Accept, Prefer"
    response.headers.update(rate_headers(submitted.rate))
    if submitted.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    applied = prefer.applied(wait_s, finished=finished)
    if applied:
        response.headers["Preference-Applied"] = applied
    return response


@router.get(
    GENERATIONS_PATH,
    operation_id="listGenerations",
    summary="List generations, newest first",
    description="Filter by `status` and by any label: `label.<name>=<value>`.",
    responses={200: {"model": GenerationPage, "description": "One page."}, **doc.refusals(422)},
    openapi_extra={"parameters": [doc.LIMIT, doc.CURSOR, doc.STATUS]},
)
async def list_generations(request: Request) -> Response:
    """Answer with one page of the caller's generations."""
    gateway, caller = gateway_of(request), await caller_of(request)
    page = await gateway.listing.page(caller.tenant, listing_query(request.query_params.multi_items()))
    data = [generation_resource(job, gateway.outlooks.of(job)) for job in page.jobs]
    return _json(GenerationPage(data=data, next_cursor=page.next_cursor))


@router.get(
    GENERATIONS_PATH + "/{generation_id}",
    operation_id="getGeneration",
    summary="Look at a generation, at once or when it has ended",
    responses={**_GENERATION, **doc.refusals(404, 410)},
    openapi_extra={"parameters": [doc.GENERATION_ID, doc.PREFER]},
)
async def get_generation(request: Request) -> Response:
    """Answer with the resource as it is, or as it is when it ended or N seconds passed."""
    gateway, caller, generation_id = gateway_of(request), await caller_of(request), _generation_id(request)
    prefer = preferences(request.headers.getlist("prefer"))
    wait_s = prefer.waits(gateway.wait_cap_s)
    job = await gateway.watch.get(caller.tenant, generation_id)
    if wait_s > 0 and not job.ended:
        with gateway.wait_places.place(caller.tenant):
            job = await while_connected(request, gateway.watch.ended(caller.tenant, generation_id, wait_s))
    response = _json(generation_resource(job, gateway.outlooks.of(job)))
    response.headers["Vary"] = "Prefer"
    applied = prefer.applied(wait_s, finished=job.ended)
    if applied:
        response.headers["Preference-Applied"] = applied
    return response


@router.post(
    GENERATIONS_PATH + "/{generation_id}/cancel",
    operation_id="cancelGeneration",
    summary="Cancel a generation",
    description="Queued: at once. Running: within one denoising step. Ended: answers with it as it is.",
    responses={**_GENERATION, **doc.refusals(404, 410, *_BODY_REFUSALS)},
    openapi_extra={"parameters": [doc.GENERATION_ID]},
)
async def cancel_generation(request: Request) -> Response:
    """Cancel; a body is not needed, and if one comes it is an empty object."""
    gateway, caller, generation_id = gateway_of(request), await caller_of(request), _generation_id(request)
    await no_fields(request)
    job = await gateway.cancel.cancel(caller.tenant, generation_id)
    return _json(generation_resource(job, gateway.outlooks.of(job)))


@router.delete(
    GENERATIONS_PATH + "/{generation_id}",
    operation_id="eraseGeneration",
    summary="Erase a generation with its pictures, inputs and prompt",
    description="Cancels it first where needed. Afterwards it is 410.",
    status_code=204,
    responses={204: {"description": "Erased."}, **doc.refusals(404, 410)},
    openapi_extra={"parameters": [doc.GENERATION_ID]},
)
async def erase_generation(request: Request) -> Response:
    """Erase a generation."""
    gateway, caller, generation_id = gateway_of(request), await caller_of(request), _generation_id(request)
    await gateway.erase.erase(caller.tenant, generation_id)
    return Response(status_code=204)


@router.get(
    GENERATIONS_PATH + "/{generation_id}/images/{number}",
    operation_id="getImage",
    summary="Fetch a picture",
    status_code=302,
    responses={
        302: {
            "description": "Where the picture lies: a link of at most an hour, for whoever holds it.",
            "headers": {"Location": doc.header("Link into the storage.")},
        },
        **doc.refusals(404, 410, 422),
    },
    openapi_extra={"parameters": [doc.GENERATION_ID, doc.IMAGE_NUMBER, doc.INLINE]},
)
async def get_image(request: Request) -> Response:
    """Redirect to a presigned link of a picture."""
    gateway, caller, generation_id = gateway_of(request), await caller_of(request), _generation_id(request)
    inline = _flag(request, "inline")
    job = await gateway.watch.get(caller.tenant, generation_id)
    image = _image(job, request.path_params["number"])
    if image.key is None or image.content_type is None:
        raise NotFound("This picture was withheld by the model's safety checker.")
    link = gateway.storage.presign_get(
        image.key,
        content_type=image.content_type,
        filename=f"{job.id}-{image.index}.{image.key.rpartition('.')[2]}",
        inline=inline,
    )
    return Response(status_code=302, headers={"Location": link})


@router.get(
    GENERATIONS_PATH + "/{generation_id}/preview",
    operation_id="getPreview",
    summary="See what a running generation looks like so far",
    description="The first picture as its model foresees it, small; it changes while the generation runs.",
    responses={
        200: {
            "description": "The latest preview.",
            "content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}},
            "headers": {"ETag": doc.header("Changes with the preview; send it in If-None-Match.")},
        },
        304: {"description": "It is still the one named in If-None-Match."},
        **doc.refusals(404, 410),
    },
    openapi_extra={"parameters": [doc.GENERATION_ID, doc.IF_NONE_MATCH]},
)
async def get_preview(request: Request) -> Response:
    """Answer with the latest preview itself."""
    gateway, caller, generation_id = gateway_of(request), await caller_of(request), _generation_id(request)
    preview = await gateway.preview.see(caller.tenant, generation_id)
    tag = f'"{preview.sha256[:32]}"'
    known = {each.strip() for line in request.headers.getlist("if-none-match") for each in line.split(",")}
    # Compared weakly (RFC 9110, 13.1.2): a proxy that compresses marks our tags as weak.
    if "*" in known or tag in known or f"W/{tag}" in known:
        return Response(status_code=304, headers={"ETag": tag})
    return Response(preview.data, headers={"ETag": tag}, media_type="image/webp")


def _json(resource: BaseModel, status: int = 200) -> Response:
    return Response(resource.model_dump_json(), status_code=status, media_type="application/json")


def _generation_id(request: Request) -> str:
    generation_id = str(request.path_params["generation_id"])
    if ID_FORM.fullmatch(generation_id):
        bind_job(generation_id)
    return generation_id


def _flag(request: Request, name: str) -> bool:
    values = request.query_params.getlist(name)
    if not values:
        return False
    if len(values) > 1 or values[0] not in {"", "true", "false"}:
        raise InvalidRequest([FieldError(name, "must be true or false")])
    return values[0] != "false"


def _image(job: Job, number: str) -> ResultImage:
    if job.status is not Status.SUCCEEDED:
        raise NotFound(f"There is no picture: the generation is {job.status}.")
    if not _IMAGE_NUMBER.fullmatch(number) or int(number) >= len(job.images):
        raise NotFound("The generation has no picture of this number.")
    return job.images[int(number)]
