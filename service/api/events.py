"""`/v1/generations/{id}/events`: a generation as Server-Sent Events (HTML Standard, section 9.2)."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, get_args

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from service.api import documentation as doc
from service.api.gateway import caller_of, gateway_of
from service.api.operation import Operation, while_connected
from service.contract.errors import FieldError, InvalidRequest
from service.generations.following import EventName, Told
from service.generations.ids import ID_FORM, ID_PATTERN
from service.generations.resource import GENERATIONS_PATH, GenerationResource, generation_resource
from service.telemetry.context import bind_job

router = APIRouter(route_class=Operation, tags=["generations"])

MEDIA_TYPE = "text/event-stream"

_REVISION = re.compile(r"^[0-9]{1,15}$")
#: ms that a browser waits before it comes again.
_RETRY = b"retry: 1000\n\n"
_HEARTBEAT = b":\n\n"
#: Ends of lines in Unicode: none in this format nor in JSON, but many readers split at them (Python's `splitlines`, and
#: with it httpx' `iter_lines`).
_LINE_ENDS = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}

_EXAMPLE = """retry: 1000

id: 1
event: started
data: {"id":"gen_…","status":"running","revision":1, …}

:

id: 9
event: completed
data: {"id":"gen_…","status":"succeeded","revision":9, …}

"""

#: One event. OpenAPI 3.1 has no word for it; 3.2 calls it itemSchema.
_EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": list(get_args(EventName))},
        "id": {"type": "string", "pattern": _REVISION.pattern},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "anyOf": [
                    {"$ref": f"#/components/schemas/{GenerationResource.__name__}"},
                    {
                        "type": "object",
                        "properties": {"id": {"type": "string", "pattern": ID_PATTERN}},
                        "required": ["id"],
                        "additionalProperties": False,
                    },
                ]
            },
        },
    },
    "required": ["event", "data"],
}


@router.get(
    GENERATIONS_PATH + "/{generation_id}/events",
    operation_id="followGeneration",
    summary="Follow a generation as Server-Sent Events",
    description=(
        "`queued`, `started` (the first of an attempt), `progress` and `completed`, each with the generation as it is "
        "then in `data` and its revision as `id`. The present state is told at once; states that came and went "
        "before they could be sent are left out. `completed` ends the stream, and so does `erased`, whose `data` has "
        "the id alone. Other ends are no end of the generation: come again with Last-Event-ID."
    ),
    responses={
        200: {
            "description": "The events; a comment where there was none for a while.",
            "content": {MEDIA_TYPE: {"x-item-schema": _EVENT, "example": _EXAMPLE}},
        },
        204: {"description": "It has ended, and Last-Event-ID is its last revision: do not come again."},
        **doc.refusals(404, 410, 422),
    },
    openapi_extra={"parameters": [doc.GENERATION_ID, doc.LAST_EVENT_ID]},
)
async def follow_generation(request: Request) -> Response:
    """Answer with a stream of events, or 204 where there will be no more."""
    gateway, caller = gateway_of(request), await caller_of(request)
    generation_id = str(request.path_params["generation_id"])
    if ID_FORM.fullmatch(generation_id):
        bind_job(generation_id)
    known = _last_event_id(request)
    await request.body()
    job = await gateway.watch.get(caller.tenant, generation_id)
    if job.ended and job.revision == known:
        # To a browser the one answer that means "do not reconnect" without being an error.
        return Response(status_code=204)
    following = gateway.follow.following(caller.tenant, job.id, known=known, admitted=lambda: caller_of(request))
    return EventStream(following)


class EventStream(Response):
    """A reply that lasts as long as there is something to tell and somebody who hears it."""

    media_type = MEDIA_TYPE

    def __init__(self, following: AbstractAsyncContextManager[AsyncIterator[Told | None]]) -> None:
        # nginx and its kin would hold small writes back.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._following = following

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; raises `Overloaded` before anything is sent, `ClientDisconnect` when nobody is there."""
        await while_connected(Request(scope, receive), self._tell(send))

    async def _tell(self, send: Send) -> None:
        async with self._following as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": _RETRY, "more_body": True})
            async for told in events:
                # It waits while the peer takes nothing; the next state is not read before.
                await send({"type": "http.response.body", "body": _lines(told), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _lines(told: Told | None) -> bytes:
    """Return an event as it is sent. JSON on one line: line breaks stand in strings only, and are escaped there."""
    if told is None:
        return _HEARTBEAT
    if told.job is None:
        # Without an `id`: the caller's last one stays.
        return f"event: {told.name}\ndata: {json.dumps({'id': told.generation_id})}\n\n".encode()
    data = generation_resource(told.job, told.outlook).model_dump_json().translate(_LINE_ENDS)
    return f"id: {told.job.revision}\nevent: {told.name}\ndata: {data}\n\n".encode()


def _last_event_id(request: Request) -> int | None:
    values = request.headers.getlist("last-event-id")
    if not values:
        return None
    if len(values) > 1 or not _REVISION.fullmatch(values[0]):
        raise InvalidRequest([FieldError("Last-Event-ID", "must be the id of an event of this generation, sent once")])
    return int(values[0])
