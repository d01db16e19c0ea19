"""Tracing that is off, that cannot be, and what counts as a parent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.telemetry.tracers import open_tracer
from service.telemetry.tracing import NO_TRACER, parse_traceparent

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_without_a_collector_nothing_is_made_and_no_line_names_a_trace() -> None:
    tracer = open_tracer(None, "darkroom-gateway")
    assert tracer is NO_TRACER
    span = tracer.start("execution", parent=PARENT)
    span.set({"darkroom.attempt": 1})
    span.end(error="dropped")
    assert (span.traceparent, span.trace_id) == (None, None)


def test_a_collector_without_the_sdk_is_one_clear_line() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from service.telemetry.tracers import TracingUnavailable, open_tracer\n"
        "try: open_tracer('http://127.0.0.1:4318', 'x')\n"
        "except TracingUnavailable as err: print(err)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "DARKROOM_TRACING_ENDPOINT: needs the extra `tracing`: pip install 'darkroom[tracing]'\n"


def test_a_parent_of_the_w3c_is_read() -> None:
    assert parse_traceparent(PARENT) == (0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, 1)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        PARENT.upper(),
        f" {PARENT}",
        f"{PARENT}\n",
        f"{PARENT}-more",
        PARENT.replace("00-4", "ff-4"),
        PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        PARENT.replace("00f067aa0ba902b7", "0" * 16),
    ],
)
def test_nothing_else_is(text: str | None) -> None:
    assert parse_traceparent(text) is None
