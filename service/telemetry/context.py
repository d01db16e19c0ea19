"""Which request and which job a line belongs to: bound at the edge, carried by context variables."""

from __future__ import annotations

import re
import secrets
from contextlib import AbstractContextManager

from structlog.contextvars import bind_contextvars, bound_contextvars

#: What a caller may choose as a request id: it is repeated in headers, logs and problems.
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id_from(given: str | None) -> str:
    """Return the caller's own request id where it is safe to repeat, else a fresh one of 96 random bits."""
    if given is not None and _SAFE_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(12)}"


def bound_request(request_id: str) -> AbstractContextManager[None]:
    """Bind a request's id to every line written inside the block."""
    return bound_contextvars(request_id=request_id)


def bind_job(job_id: str) -> None:
    """Add a job's id to the lines that follow in this context."""
    bind_contextvars(job_id=job_id)
