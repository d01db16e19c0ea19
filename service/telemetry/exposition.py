"""What a process counts, for Prometheus, on a port of its own: never the one that callers reach."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server


class MetricsPortTaken(Exception):
    """The port of the metrics cannot be had; the message is one line that names the variables."""


def expose(registry: CollectorRegistry, host: str, port: int) -> None:
    """Answer `GET /metrics` from now on, from a thread. Raises `MetricsPortTaken`."""
    try:
        start_http_server(port, host, registry=registry)
    except OSError as err:
        msg = f"DARKROOM_METRICS_HOST, DARKROOM_METRICS_PORT: cannot listen on {host}:{port}: {err.strerror}"
        raise MetricsPortTaken(msg) from err
