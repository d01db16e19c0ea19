"""Spans, from the request to the commit, for OpenTelemetry; nothing at all where tracing is off.

    span = tracer.start("execution", kind="consumer", parent=job.traceparent)
    span.set({"darkroom.attempt": 1})
    span.end()

A parent is always named, never taken from a context: spans of one trace are made by several processes, and by threads
that draw for many. Attributes are ids, words and numbers of ours: never prompts, keys, links, labels or addresses. The
SDK is of the extra `tracing`, and is imported where spans are sent somewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

SpanKind = Literal["server", "consumer", "client", "internal"]
Attributes = Mapping[str, str | int | float | bool]

#: W3C Trace Context, version 00: trace id, parent id, flags; ids of zeros alone are none.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


class Span(Protocol):
    """Something that takes time."""

    @property
    def traceparent(self) -> str | None:
        """What makes a span of another process a child of this one; None where nothing is traced."""
        ...

    @property
    def trace_id(self) -> str | None:
        """The trace that it belongs to, 32 hex digits, for logs."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Say more of it."""
        ...

    def end(self, *, error: str | None = None) -> None:
        """End it, once. `error`: a word of ours for what went wrong."""
        ...


class Tracer(Protocol):
    """Makes spans. Thread-safe."""

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
        """Begin a span, now or at `start_ns` (since 1970).

        `parent` and `links` are traceparents of other spans; what is no such thing is as none, and begins a new trace.
        """
        ...

    def close(self) -> None:
        """Send what has ended, for at most some seconds; nothing can be started after that."""
        ...


class _NoSpan:
    traceparent = None
    trace_id = None

    def set(self, attributes: Attributes) -> None:
        pass

    def end(self, *, error: str | None = None) -> None:
        pass


class _NoTracer:
    def start(
        self,
        name: str,  # noqa: ARG002 - nobody is told
        *,
        kind: SpanKind = "internal",  # noqa: ARG002
        parent: str | None = None,  # noqa: ARG002
        links: Sequence[str | None] = (),  # noqa: ARG002
        start_ns: int | None = None,  # noqa: ARG002
        attributes: Attributes | None = None,  # noqa: ARG002
    ) -> Span:
        return _NO_SPAN

    def close(self) -> None:
        pass


_NO_SPAN = _NoSpan()
#: Makes nothing.
NO_TRACER: Tracer = _NoTracer()


def parse_traceparent(text: str | None) -> tuple[int, int, int] | None:
    """Return trace id, span id and flags; None for whatever is no traceparent."""
    found = _TRACEPARENT.fullmatch(text) if text else None
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return trace_id, span_id, flags
