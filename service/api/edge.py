"""The outermost layer of the app: a request id, an access event, headers on every reply, and no error that escapes."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Protocol

import structlog
from fastapi.requests import Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.operation import waited_s
from service.api.problems import problem_response, status_of, unexpected_response
from service.api.request_trace import trace_arrived, trace_ended
from service.contract.errors import DarkroomError, GenerationFailed
from service.telemetry.context import begin_request, request_id_from
from service.telemetry.tracing import NO_TRACER, Tracer

log = structlog.get_logger("service.access")

#: Where the id of the request is kept in its scope.
_REQUEST_ID = "darkroom.request_id"


class RequestMeter(Protocol):
    """Counts requests: `service.telemetry.gateway_metrics.GatewayMetrics`."""

    def requested(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request that was answered, and its time without what was waited for a generation."""
        ...

    def refused(self, route: str | None, code: str) -> None:
        """Count a request that was answered with a problem of this code."""
        ...


def request_id_of(request: Request) -> str:
    """Return the id that the edge gave to this request."""
    return str(request.scope[_REQUEST_ID])


class Edge:
    """ASGI middleware. Every reply below it, and every error, passes here."""

    def __init__(self, app: ASGIApp, *, meter: RequestMeter | None = None, tracer: Tracer = NO_TRACER) -> None:
        """`meter`: None = nobody counts."""
        self._app = app
        self._meter = meter
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connection pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = request_id_from(_header(scope, b"x-request-id"))
        scope[_REQUEST_ID] = request_id
        begin_request(request_id)
        trace_arrived(self._tracer, scope, request_id)
        status: int | None = None

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            pass
        except DarkroomError as err:
            if status is not None:
                raise
            self._tell(scope, err)
            await problem_response(err, request_id)(scope, receive, send_marked)
        except Exception:
            log.exception("unexpected_error")
            if status is not None:
                raise
            await unexpected_response(request_id)(scope, receive, send_marked)
        finally:
            self._finished(scope, status, time.perf_counter() - started)

    def _finished(self, scope: Scope, status: int | None, lasted_s: float) -> None:
        """Write down, count and trace a request that is over; no status: it was abandoned."""
        route = _route(scope)
        log.info(
            "request_finished" if status else "request_abandoned",
            method=scope["method"],
            route=route,
            status=status,
            duration_ms=round(1000 * lasted_s, 2),
        )
        if self._meter is not None and status:
            self._meter.requested(scope["method"], route, status, lasted_s - waited_s(scope))
        trace_ended(scope, status)

    def _tell(self, scope: Scope, err: DarkroomError) -> None:
        """Write down what an operator should know: a refusal with its cause, or a defect with its traceback."""
        if self._meter is not None:
            self._meter.refused(_route(scope), err.code)
        _log(err)


def _log(err: DarkroomError) -> None:
    if status_of(err) == HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(err, GenerationFailed):
        log.error("request_failed", code=err.code, exc_info=err)
    else:
        log.info("request_refused", code=err.code, cause=type(err.__cause__).__name__ if err.__cause__ else None)


def _route(scope: Scope) -> str | None:
    """Return the pattern of the route: a path may hold anything."""
    return getattr(scope.get("route"), "path", None)


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None
