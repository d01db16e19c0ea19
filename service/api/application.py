"""The HTTP application: layers, routes and what nothing matches. It opens nothing; `service.app` does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.api import batches, events, generations, health, models, reruns, uploads, usage, validation, webhooks
from service.api.body_limit import BodyLimit
from service.api.edge import Edge, RequestMeter, request_id_of
from service.api.loopback import LoopbackOnly
from service.api.operation import Operation
from service.api.problems import MethodNotAllowed, problem_response
from service.contract.errors import DarkroomError, MalformedRequest, NotFound
from service.settings.gateway import HttpSettings
from service.telemetry.tracing import NO_TRACER, Tracer

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_DESCRIPTION = """Queue a generation, follow it, fetch its pictures.

Errors are `application/problem+json` (RFC 9457) with a stable `code`. Numbers are strict: `true`, `"12"` and `7.0` are
no integers. Unknown fields are refused. Units stand in the names (`width_px`, `retain_s`) or in `x-unit`."""


def build_api(
    http: HttpSettings,
    *,
    local_only: bool,
    lifespan: Lifespan | None = None,
    meter: RequestMeter | None = None,
    tracer: Tracer = NO_TRACER,
) -> FastAPI:
    """Return the application; `local_only` adds the checks of a gateway without keys, `meter` counts requests."""
    api = FastAPI(
        title="Darkroom",
        version=version("darkroom"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
    )
    # Routes are added as they are: `include_router` would match each request twice.
    routers = (batches, validation, generations, reruns, events, uploads, models, usage, webhooks, health)
    for router in (each.router for each in routers):
        api.router.routes.extend(router.routes)
    api.add_exception_handler(HTTPException, _unmatched)
    # The last one added is the outermost.
    api.add_middleware(
        BodyLimit,
        limit_bytes=http.body_limit_bytes,
        budget_bytes=http.body_budget_bytes,
        timeout_s=http.body_timeout_s,
    )
    if local_only:
        api.add_middleware(LoopbackOnly)
    api.add_middleware(Edge, meter=meter, tracer=tracer)
    return api


async def _unmatched(request: Request, err: Exception) -> Response:
    """Answer what the router itself refuses: an unknown path, or a method that a path does not have."""
    refusal: DarkroomError
    match err:
        case HTTPException(status_code=404):
            refusal = NotFound("There is nothing at this path.")
        case HTTPException(status_code=405):
            refusal = MethodNotAllowed(", ".join(_methods(request)))
        case _:
            refusal = MalformedRequest("The request cannot be understood.")
    return problem_response(refusal, request_id_of(request))


def _methods(request: Request) -> list[str]:
    """Return every method that a request's path has."""
    found: set[str] = set()
    for route in request.app.router.routes:
        if isinstance(route, Operation) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)
