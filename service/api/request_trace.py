"""The span of a request. It begins when the caller is let in: whoever is not makes no span, and chooses no trace."""

from __future__ import annotations

import time

from starlette.types import Scope
from structlog.contextvars import get_contextvars

from service.telemetry.context import bind_trace
from service.telemetry.tracing import NO_TRACER, Span, Tracer

_TRACE = "darkroom.trace"


class RequestTrace:
    """One request, from its arrival to its last byte."""

    def __init__(self, tracer: Tracer, scope: Scope, request_id: str) -> None:
        self._tracer = tracer
        self._scope = scope
        self._request_id = request_id
        self._began_ns = time.time_ns()
        self._span: Span | None = None

    def admitted(self, tenant: str) -> None:
        """Begin the span, as a child of the caller's own where it names one (W3C Trace Context); again does nothing."""
        if self._span is not None:
            return
        method, route = self._scope["method"], str(getattr(self._scope.get("route"), "path", ""))
        given = [value for name, value in self._scope["headers"] if name == b"traceparent"]
        self._span = self._tracer.start(
            f"{method} {route}",
            kind="server",
            parent=given[0].decode("latin-1") if len(given) == 1 else None,
            start_ns=self._began_ns,
            attributes={
                "http.request.method": method,
                "http.route": route,
                "darkroom.request_id": self._request_id,
                "darkroom.tenant": tenant,
            },
        )
        bind_trace(self._span.trace_id, self._span.traceparent)

    def end(self, status: int | None) -> None:
        """End the span; None = the caller went away first."""
        if self._span is None:
            return
        # What a handler found out that the request is about, for logs and for us.
        job_id = get_contextvars().get("job_id")
        if job_id is not None:
            self._span.set({"darkroom.job_id": job_id})
        if status is not None:
            self._span.set({"http.response.status_code": status})
        failed = status is not None and status >= 500
        self._span.end(error=str(status) if failed else None)


def trace_arrived(tracer: Tracer, scope: Scope, request_id: str) -> None:
    """Note that a request has come, where requests are traced."""
    if tracer is not NO_TRACER:
        scope[_TRACE] = RequestTrace(tracer, scope, request_id)


def trace_ended(scope: Scope, status: int | None) -> None:
    """End the span of a request, where it has one; None = the caller went away first."""
    trace = scope.get(_TRACE)
    if trace is not None:
        trace.end(status)


def trace_admitted(scope: Scope, tenant: str) -> None:
    """Begin the span of a request whose caller is known, where requests are traced."""
    trace = scope.get(_TRACE)
    if trace is not None:
        trace.admitted(tenant)
