"""A route whose handler takes the request and answers with a response: FastAPI documents it, and stays out of its way.

FastAPI's own binding of bodies and parameters is not used: it takes `true` for 1, repeats what was sent in its errors,
fails on NaN, and costs more time per request than the whole submit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.api.access import SCOPE_OF
from service.api.loopback import is_json
from service.api.problems import MethodNotAllowed
from service.api.strict_json import parse_object
from service.contract.errors import FieldError, InvalidRequest, UnsupportedMedia
from service.generations.idempotency import IdempotentCall, idempotent_call

#: Where the scope of a key that the operation asks for is kept in the scope of its request.
KEY_SCOPE = "darkroom.key_scope"

T = TypeVar("T")

#: Where a request's scope tells how long it was held, s: waits and streams last as long as their caller wants.
_WAITED_S = "darkroom.waited_s"

Handler = Callable[[Request], Awaitable[Response]]


class Operation(APIRoute):
    """A route that calls its handler directly."""

    def __init__(self, path: str, endpoint: Handler, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        #: None where no key is asked for.
        self.key_scope = SCOPE_OF.get(self.operation_id or "")

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            scope[KEY_SCOPE] = self.key_scope
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = answer


def only_post(router: APIRouter, path: str) -> None:
    """Answer every other method at `path` with 405, where a path with a parameter would take them for its own."""

    async def refuse(_request: Request) -> Response:
        raise MethodNotAllowed("POST")

    others = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
    router.add_api_route(path, refuse, methods=others, include_in_schema=False)


async def json_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request's body.

    Raises `UnsupportedMedia`, `MalformedRequest`, `RequestTooLarge`, `RequestTimedOut`.
    """
    content_types = request.headers.getlist("content-type")
    if len(content_types) != 1 or not is_json(content_types[0]):
        raise UnsupportedMedia("The body must be application/json in UTF-8; say so in Content-Type.")
    return parse_object(await request.body())


def idempotent(request: Request, path: str, body: Mapping[str, Any]) -> IdempotentCall | None:
    """Return what a creating call is known by when it is repeated; None without a key. Raises `InvalidRequest`."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1:
        raise InvalidRequest([FieldError("Idempotency-Key", "is given twice")])
    return idempotent_call(request.method, path, keys[0], body)


async def while_connected(request: Request, waiting: Coroutine[Any, Any, T]) -> T:
    """Return what is waited for. Call it after the body was read.

    Raises `ClientDisconnect`, and ends the wait, as soon as nobody is there to hear the answer.
    """
    began_s = time.perf_counter()
    answer = asyncio.create_task(waiting)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientDisconnect
    finally:
        answer.cancel()
        gone.cancel()
        request.scope[_WAITED_S] = waited_s(request.scope) + time.perf_counter() - began_s


def waited_s(scope: Scope) -> float:
    """Return how long a request was held for a generation."""
    return float(scope.get(_WAITED_S, 0.0))


async def _disconnected(request: Request) -> None:
    """Return when the client has closed its connection."""
    message = await request.receive()
    while message["type"] != "http.disconnect":
        message = await request.receive()
