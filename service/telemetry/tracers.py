"""Where spans go: to a collector, or nowhere."""

from __future__ import annotations

from service.telemetry.tracing import NO_TRACER, Tracer


class TracingUnavailable(Exception):
    """Spans cannot be made as the settings ask; the message is one line that names the variable."""


def open_tracer(endpoint: str | None, service: str) -> Tracer:
    """Return what sends spans of `service` to a collector, or `NO_TRACER` where there is none to send to.

    Raises `TracingUnavailable` where the SDK is not installed.
    """
    if endpoint is None:
        return NO_TRACER
    try:
        from service.telemetry.otel import OtelTracer  # noqa: PLC0415 - of an optional extra, and slow to import
    except ImportError as err:
        msg = "DARKROOM_TRACING_ENDPOINT: needs the extra `tracing`: pip install 'darkroom[tracing]'"
        raise TracingUnavailable(msg) from err
    return OtelTracer(endpoint, service)
