"""What a gateway counts, as Prometheus reads it over HTTP."""

from __future__ import annotations

import socket

import httpx
import pytest

from service.telemetry import metric_names
from service.telemetry.exposition import MetricsPortTaken, expose
from service.telemetry.gateway_metrics import GatewayMetrics, Gauges
from tests.e2e.processes import free_port, samples

ROUTE = "/v1/generations/{generation_id}"


def scraped(metrics: GatewayMetrics) -> dict[str, float]:
    port = free_port()
    expose(metrics.registry, "127.0.0.1", port)
    return samples(port)


def of_request(status: str, *, method: str = "GET", route: str = ROUTE) -> str:
    return f'{metric_names.REQUESTS}{{method="{method}",route="{route}",status="{status}"}}'


def test_requests_are_counted_by_route_and_class_of_status() -> None:
    metrics = GatewayMetrics()
    for status in (200, 204, 404, 410, 503):
        metrics.requested("GET", ROUTE, status, 0.002)
    metrics.requested("DELETE", ROUTE, 204, 0.3)
    found = scraped(metrics)
    assert {name: found[of_request(name)] for name in ("2xx", "4xx", "5xx")} == {"2xx": 2, "4xx": 2, "5xx": 1}
    assert found[of_request("2xx", method="DELETE")] == 1
    labels = f'method="GET",route="{ROUTE}"'
    assert found[f"{metric_names.REQUEST_SECONDS}_sum{{{labels}}}"] == pytest.approx(0.01)
    assert found[f'{metric_names.REQUEST_SECONDS}_bucket{{le="0.001",{labels}}}'] == 0
    assert found[f'{metric_names.REQUEST_SECONDS}_bucket{{le="0.0025",{labels}}}'] == 5


def test_what_callers_invent_makes_no_series() -> None:
    metrics = GatewayMetrics()
    for number in range(50):
        metrics.requested(f"METHOD{number}", None, 404, 0.001)
        metrics.refused(None, "not_found")
    found = scraped(metrics)
    assert found[of_request("4xx", method="other", route="unmatched")] == 50
    assert found[f'{metric_names.REFUSALS}{{code="not_found",route="unmatched"}}'] == 50
    assert not [name for name in found if "METHOD" in name]


def test_what_is_not_known_has_no_sample() -> None:
    metrics = GatewayMetrics()
    metrics.watch(
        Gauges(
            (metric_names.REDIS_MEMORY_RATIO, "…", lambda: None),
            (metric_names.WAITS_OPEN, "…", lambda: 3),
        )
    )
    found = scraped(metrics)
    assert metric_names.REDIS_MEMORY_RATIO not in found
    assert found[metric_names.WAITS_OPEN] == 3


def test_a_port_that_is_taken_is_named_with_its_variable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        with pytest.raises(MetricsPortTaken, match=f"DARKROOM_METRICS_PORT: cannot listen on 127.0.0.1:{port}: "):
            expose(GatewayMetrics().registry, "127.0.0.1", port)


def test_only_the_asked_address_answers() -> None:
    port = free_port()
    expose(GatewayMetrics().registry, "127.0.0.1", port)
    assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.2:{port}/metrics")
