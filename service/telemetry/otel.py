"""Spans by the SDK of OpenTelemetry, sent as OTLP over HTTP from a thread of its own. Of the extra `tracing`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from service.telemetry.tracing import Attributes, Span, SpanKind, parse_traceparent

_KINDS: dict[SpanKind, trace.SpanKind] = {
    "server": trace.SpanKind.SERVER,
    "consumer": trace.SpanKind.CONSUMER,
    "client": trace.SpanKind.CLIENT,
    "internal": trace.SpanKind.INTERNAL,
}
_PATH = "/v1/traces"
#: s; a collector that hangs costs the sending thread that, and a process that ends not much more.
_SEND_S, _CLOSE_S = 2.0, 2.5


class OtelTracer:
    """Makes spans of one service. What the collector does not take is dropped; nobody waits for it."""

    def __init__(self, endpoint: str, service: str) -> None:
        url = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(endpoint=url if url.endswith(_PATH) else url + _PATH, timeout=_SEND_S)
        # What the operator says by OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES goes before our own words.
        ours = Resource({SERVICE_NAME: service, SERVICE_VERSION: version("darkroom")})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("darkroom")

    def start(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        parent: str | None = None,
        links: Sequence[str | None] = (),
        start_ns: int | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """As `service.telemetry.tracing.Tracer`."""
        above, nothing = _context_of(parent), Context()
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(NonRecordingSpan(above), nothing) if above else nothing,
            kind=_KINDS[kind],
            links=[Link(linked) for linked in map(_context_of, links) if linked],
            start_time=start_ns,
            attributes=attributes,
        )
        return _OtelSpan(span)

    def close(self) -> None:
        """Send what has ended; the SDK itself would wait for half a minute."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


class _OtelSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace_id: str | None = trace.format_trace_id(context.trace_id)
        self.traceparent: str | None = (
            f"00-{self.trace_id}-{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}"
        )

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def end(self, *, error: str | None = None) -> None:
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _context_of(traceparent: str | None) -> SpanContext | None:
    parts = parse_traceparent(traceparent)
    if parts is None:
        return None
    trace_id, span_id, flags = parts
    # Of the flags `sampled` alone has a meaning that is fixed.
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & TraceFlags.SAMPLED))
