"""Which request and which job a line belongs to: bound at the edge, carried by context variables."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

from structlog.contextvars import bind_contextvars, clear_contextvars

#: The span of the request that this context serves.
_TRACEPARENT: ContextVar[str | None] = ContextVar("darkroom_traceparent", default=None)

#: What a caller may choose as a request id: it is repeated in headers, logs and problems.
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id_from(given: str | None) -> str:
    """Return the caller's own request id where it is safe to repeat, else a fresh one of 96 random bits."""
    if given is not None and _SAFE_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(12)}"


def begin_request(request_id: str) -> None:
    """Bind a request's id to every line written in this context, and forget what an earlier request bound.

    asyncio may hand a task the variables of another (CPython issue 140947), so that nothing is trusted to be empty.
    """
    clear_contextvars()
    _TRACEPARENT.set(None)
    bind_contextvars(request_id=request_id)


def bind_job(job_id: str) -> None:
    """Add a job's id to the lines that follow in this context."""
    bind_contextvars(job_id=job_id)


def bind_tenant(tenant: str) -> None:
    """Add a tenant's id to the lines that follow in this context."""
    bind_contextvars(tenant=tenant)


def bind_trace(trace_id: str | None, traceparent: str | None) -> None:
    """Add a trace's id to the lines that follow in this context, and make its span the parent of jobs made here."""
    if trace_id is not None:
        bind_contextvars(trace_id=trace_id)
    _TRACEPARENT.set(traceparent)


def current_traceparent() -> str | None:
    """Return what jobs that are made here name as their parent; None where nothing is traced."""
    return _TRACEPARENT.get()
