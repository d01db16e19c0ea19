"""`/v1/webhooks`: the tenant's secrets, endpoints and deliveries."""

from __future__ import annotations

from typing import get_args

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api import documentation as doc
from service.api import webhook_resources as shown
from service.api.gateway import caller_of, gateway_of
from service.api.operation import Operation, idempotent, json_object
from service.api.optional_body import no_fields, optional_object
from service.contract.events import EventState
from service.generations.ids import ID_PATTERN
from service.generations.listing import LIMIT_DEFAULT, LIMIT_MAX
from service.generations.webhooks import (
    ENDPOINT_PATTERN,
    EVENT_PATTERN,
    delivery_query,
    endpoint_query,
    endpoint_switch,
    rotation_span_s,
)

log = structlog.get_logger(__name__)

router = APIRouter(route_class=Operation, tags=["webhooks"])

PATH = "/v1/webhooks"

_ENDPOINT_ID: doc.Parameter = {
    "name": "endpoint_id",
    "in": "path",
    "required": True,
    "description": "The id of an endpoint.",
    "schema": {"type": "string", "pattern": ENDPOINT_PATTERN},
    "example": shown.EXAMPLE_ENDPOINT,
}
_EVENT_ID: doc.Parameter = {
    "name": "event_id",
    "in": "path",
    "required": True,
    "description": "The id of an event: the `webhook-id` of what was sent.",
    "schema": {"type": "string", "pattern": EVENT_PATTERN},
    "example": shown.EXAMPLE_EVENT,
}
_LIMIT: doc.Parameter = {
    "name": "limit",
    "in": "query",
    "description": "Entries on a page.",
    "schema": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
}
_FILTERS: list[doc.Parameter] = [
    {
        "name": "generation",
        "in": "query",
        "description": "Only events of this generation.",
        "schema": {"type": "string", "pattern": ID_PATTERN},
    },
    {
        "name": "endpoint",
        "in": "query",
        "description": "Only what goes to this endpoint.",
        "schema": {"type": "string", "pattern": ENDPOINT_PATTERN},
    },
    {
        "name": "state",
        "in": "query",
        "description": "Only events in this state.",
        "schema": {"type": "string", "enum": list(get_args(EventState))},
    },
]
#: What a body may be refused with.
_BODY = (408, 413, 415, 422)


@router.get(
    f"{PATH}/secret",
    operation_id="getWebhookSecret",
    summary="Read the present webhook secret",
    description="It is drawn when it is first needed. With it a receiver verifies what it gets.",
    responses={200: {"model": shown.WebhookSecretText, "description": "The secret."}, **doc.refusals()},
)
async def get_secret(request: Request) -> Response:
    """Answer with the secret that messages are signed with."""
    caller = await caller_of(request)
    present, *_ = await gateway_of(request).webhooks.secrets(caller.tenant)
    return _json(shown.secret_text(present))


@router.get(
    f"{PATH}/secrets",
    operation_id="listWebhookSecrets",
    summary="List the valid webhook secrets, without their texts",
    responses={
        200: {"model": shown.WebhookSecretList, "description": "One, or more after a rotation."},
        **doc.refusals(),
    },
)
async def list_secrets(request: Request) -> Response:
    """Answer with what is valid now."""
    caller = await caller_of(request)
    found = await gateway_of(request).webhooks.secrets(caller.tenant)
    return _json(shown.WebhookSecretList(data=[shown.secret_resource(each) for each in found]))


@router.post(
    f"{PATH}/secrets/rotate",
    operation_id="rotateWebhookSecret",
    summary="Draw a new webhook secret",
    description=(
        "From now on messages are signed with it, and with the earlier ones as long as they are valid. At most four "
        "are valid at once: the oldest ends. The same `Idempotency-Key` draws no second one."
    ),
    responses={200: {"model": shown.WebhookSecretText, "description": "The new secret."}, **doc.refusals(*_BODY)},
    openapi_extra={
        "parameters": [doc.IDEMPOTENCY_KEY],
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RotationRequest"}}},
        },
    },
)
async def rotate_secret(request: Request) -> Response:
    """Rotate, and answer with the secret that is the present one then."""
    caller = await caller_of(request)
    body = await optional_object(request)
    keep_s = rotation_span_s(body)
    call = idempotent(request, f"{PATH}/secrets/rotate", body)
    present, *_ = await gateway_of(request).webhooks.rotate(
        caller.tenant, who=caller.who, keep_s=keep_s, name=call.record if call else ""
    )
    log.info("webhook_secret_rotated", who=caller.who, secret_id=present.id)
    return _json(shown.secret_text(present))


@router.get(
    f"{PATH}/endpoints",
    operation_id="listWebhookEndpoints",
    summary="List the endpoints that events go to",
    responses={200: {"model": shown.EndpointPage, "description": "One page."}, **doc.refusals(422)},
    openapi_extra={"parameters": [_LIMIT, doc.CURSOR]},
)
async def list_endpoints(request: Request) -> Response:
    """Answer with one page of the caller's endpoints."""
    caller = await caller_of(request)
    query = endpoint_query(request.query_params.multi_items())
    found, after = await gateway_of(request).webhooks.endpoints(caller.tenant, query)
    return _json(shown.EndpointPage(data=[shown.endpoint_resource(each) for each in found], next_cursor=after))


@router.get(
    f"{PATH}/endpoints/{{endpoint_id}}",
    operation_id="getWebhookEndpoint",
    summary="Look at an endpoint",
    responses={200: {"model": shown.EndpointResource, "description": "The endpoint."}, **doc.refusals(404)},
    openapi_extra={"parameters": [_ENDPOINT_ID]},
)
async def get_endpoint(request: Request) -> Response:
    """Answer with one endpoint."""
    caller = await caller_of(request)
    found = await gateway_of(request).webhooks.endpoint(caller.tenant, request.path_params["endpoint_id"])
    return _json(shown.endpoint_resource(found))


@router.patch(
    f"{PATH}/endpoints/{{endpoint_id}}",
    operation_id="switchWebhookEndpoint",
    summary="Switch an endpoint off or on",
    description=(
        "Off: nothing is sent to it; what waits, and what is to come, is kept as `failed`. On: what comes from then on "
        "is sent again; what failed meanwhile is sent by redelivery."
    ),
    responses={200: {"model": shown.EndpointResource, "description": "As it is now."}, **doc.refusals(404, *_BODY)},
    openapi_extra={
        "parameters": [_ENDPOINT_ID],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/EndpointRequest"}}},
        },
    },
)
async def switch_endpoint(request: Request) -> Response:
    """Switch, and answer with the endpoint."""
    caller = await caller_of(request)
    on = endpoint_switch(await json_object(request))
    found = await gateway_of(request).webhooks.switch(
        caller.tenant, request.path_params["endpoint_id"], on=on, who=caller.who
    )
    log.info("webhook_endpoint_switched", who=caller.who, endpoint_id=found.id, enabled=on)
    return _json(shown.endpoint_resource(found))


@router.get(
    f"{PATH}/deliveries",
    operation_id="listWebhookDeliveries",
    summary="List what was sent, newest first",
    responses={200: {"model": shown.DeliveryPageResource, "description": "One page."}, **doc.refusals(422)},
    openapi_extra={"parameters": [*_FILTERS, _LIMIT, doc.CURSOR]},
)
async def list_deliveries(request: Request) -> Response:
    """Answer with one page of the caller's deliveries."""
    caller = await caller_of(request)
    query = delivery_query(request.query_params.multi_items())
    page = await gateway_of(request).webhooks.deliveries(caller.tenant, query)
    data = [shown.delivery_resource(each) for each in page.deliveries]
    return _json(shown.DeliveryPageResource(data=data, next_cursor=page.next and "-".join(page.next)))


@router.get(
    f"{PATH}/deliveries/{{event_id}}",
    operation_id="getWebhookDelivery",
    summary="Look at a delivery",
    responses={200: {"model": shown.DeliveryResource, "description": "The delivery."}, **doc.refusals(404)},
    openapi_extra={"parameters": [_EVENT_ID]},
)
async def get_delivery(request: Request) -> Response:
    """Answer with one delivery."""
    caller = await caller_of(request)
    found = await gateway_of(request).webhooks.delivery(caller.tenant, request.path_params["event_id"])
    return _json(shown.delivery_resource(found))


@router.post(
    f"{PATH}/deliveries/{{event_id}}/redeliver",
    operation_id="redeliverWebhook",
    summary="Send an event again",
    description=(
        "As soon as may be, under the same id, and with the whole schedule of attempts; the body is the generation as "
        "it is then. An endpoint that is switched off has to be switched on first."
    ),
    status_code=202,
    responses={202: {"model": shown.DeliveryResource, "description": "It will be sent."}, **doc.refusals(404, *_BODY)},
    openapi_extra={"parameters": [_EVENT_ID]},
)
async def redeliver(request: Request) -> Response:
    """Have it sent again; a body is not needed, and if one comes it is an empty object."""
    caller = await caller_of(request)
    await no_fields(request)
    found = await gateway_of(request).webhooks.redeliver(caller.tenant, request.path_params["event_id"])
    return _json(shown.delivery_resource(found), 202)


def _json(resource: BaseModel, status: int = 200) -> Response:
    return Response(resource.model_dump_json(), status_code=status, media_type="application/json")
